from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def as_a_reader_runs_it() -> Iterator[None]:
    """Shapes in signatures go unchecked, so that a wrong one meets our own check."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
