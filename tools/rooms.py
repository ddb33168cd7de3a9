"""How far the printed results of notebooks move when another machine computes them.

    python tools/rooms.py [book/maze.ipynb ...]

Each notebook runs in the six settings of `make test-portability`, and of every
`about` the numbers found are listed beside the room that the notebook allows.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from gate import PORTABILITY, book_notebooks
from run_notebooks import run_cells

# Runs before the first cell, so that the notebook imports an `about` that writes down
# what it was asked.
NOTED = """
def noted():
    import json, os
    from rl_notes import numbers
    plain = numbers.about
    def about(value, expected, *, within):
        with open(os.environ["ROOMS"], "a", encoding="utf-8") as file:
            file.write(json.dumps([float(value), expected, within]) + chr(10))
        return plain(value, expected, within=within)
    numbers.about = about
noted()
"""


def found_in(path: Path, settings: dict[str, str]) -> list[list[float]]:
    """Run a notebook in one setting; return value, expected and room of each result."""
    with tempfile.TemporaryDirectory() as name:
        copy, noted = Path(name) / path.name, Path(name) / "rooms.jsonl"
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(NOTED))
        nbformat.write(notebook, copy)
        noted.touch()
        run_cells(copy, {**settings, "ROOMS": str(noted)})
        return [json.loads(line) for line in noted.read_text("utf-8").splitlines()]


def main(names: Sequence[str]) -> int:
    """List the rooms of the named notebooks, or of all."""
    tight = 0
    for path in [Path(name) for name in names] or book_notebooks():
        runs = [found_in(path, settings) for settings in PORTABILITY]
        for results in zip(*runs, strict=True):
            values = [value for value, _, _ in results]
            _, expected, within = results[0]
            used = max(abs(value - expected) for value in values) / within
            tight += used > 1
            span = f"{min(values):.5g} to {max(values):.5g}"
            said = f"{expected} within {within}"
            print(f"{path.stem:16} {said:24} found {span:22} {used:4.0%}", flush=True)
    print(f"{tight} results move by more than their room")
    return 1 if tight else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
