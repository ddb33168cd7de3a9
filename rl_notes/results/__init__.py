"""Stored results of runs that are too long for a page.

Each is a JSON file beside this one, and `python -m experiments.NAME` makes NAME.json
again. Its entry "about" says how it was made.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def load(name: str) -> dict[str, Any]:
    """The stored results of the experiment of this name."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        known = sorted(path.stem for path in FOLDER.glob("*.json"))
        raise ValueError(
            f"There are no stored results named {name!r}. Known are: {known}."
        )
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results
