import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

# Experiments are packages of the repository. Last, so that it is the wheel that is
# tested wherever one is on the path.
sys.path.append(str(Path(__file__).resolve().parents[1]))


@pytest.fixture
def as_a_reader_runs_it() -> Iterator[None]:
    """Shapes in signatures go unchecked, so that a wrong one meets our own check."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
