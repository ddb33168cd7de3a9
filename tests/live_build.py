"""The build step of the live parts, which is no part of a package."""

import importlib.util
from typing import Any

from gate import ROOT


def live_weights() -> Any:
    """The module book/_ext/live_weights.py."""
    path = ROOT / "book" / "_ext" / "live_weights.py"
    spec = importlib.util.spec_from_file_location("live_weights", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
