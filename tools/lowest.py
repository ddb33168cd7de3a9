"""What `make test-lowest` installs and runs. Needs nothing but Python.

    python tools/lowest.py packages   # one requirement per line
    python tools/lowest.py tests      # the files of tests that need no more than these

The lower bounds of `pyproject.toml`, each exactly; torch as in `requirements.txt`, as
another would be gigabytes; and from there the tools of the tests.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "beartype")
# What looks at the book and its gate: these need the packages of the book.
OF_THE_BOOK = re.compile(r"nbformat|notebook_rules|site_rules|bs4|yaml|\bgate\b")


def packages() -> list[str]:
    """Exact requirements, the lowest that are promised."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    promised = project["project"]["dependencies"]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
        if "==" in line
    )
    lowest = [one.replace(">=", "==") for one in promised if "torch" not in one]
    exact = [f"{name}=={pinned[name]}" for name in ("torch", *TOOLS)]
    return [*lowest, *exact, "scipy"]  # of which whatever fits that numpy


def tests() -> list[str]:
    """Tests of the library alone."""
    return [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if path.parent.name != "peers"
        and not OF_THE_BOOK.search(path.read_text(encoding="utf-8"))
    ]


if __name__ == "__main__":
    print("\n".join({"packages": packages, "tests": tests}[sys.argv[1]]()))
