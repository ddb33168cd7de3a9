"""Train the real model of the book for three updates: `make real-model`.

    python tools/real_model.py

The model is fetched first, unless it is there. Then a copy of the chapter runs on the
CPU with the model at hand, for three updates in place of 25, and what its loop prints
is compared with the stored run of the same seed. Where RL_NOTES_REAL_MODEL names a
folder, that model is trained, and nothing is compared: the stored runs began with
other weights.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import fetch_real_model
import nbformat
from gate import ROOT
from nbformat import NotebookNode
from run_notebooks import CellFailed, run_cells

CHAPTER = ROOT / "book" / "real_model.ipynb"
UPDATES, LIVE = "UPDATES = 25", "UPDATES = 3"
LINE = re.compile(
    r"^ *(\d+) +right ([\d.]+) +KL ([\d.]+) +entropy ([\d.]+)$", re.MULTILINE
)
# How far what is found may lie from the stored run: the share of right answers, the KL
# and the entropy. The first update's answers are the same tokens but for rounding,
# later ones' may part where a draw falls on an edge.
FIRST, LATER = (0.02, 0.002, 0.02), (0.08, 0.02, 0.15)

Updates = dict[int, tuple[float, ...]]


def printed(notebook: NotebookNode) -> Updates:
    """What the chapter says of each update: share right, KL, entropy."""
    texts = [
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    return {
        int(number): tuple(map(float, figures))
        for number, *figures in LINE.findall("\n".join(texts))
    }


def copied(folder: Path) -> Path:
    """The chapter, to be run for three updates."""
    notebook = nbformat.read(CHAPTER, as_version=4)
    cells = [cell for cell in notebook.cells if UPDATES in cell.source]
    if len(cells) != 1:
        raise SystemExit(f"{CHAPTER.name} has {len(cells)} cells with `{UPDATES}`")
    cells[0].source = cells[0].source.replace(UPDATES, LIVE)
    path = folder / CHAPTER.name
    nbformat.write(notebook, path)
    return path


def far(found: Updates, stored: Updates) -> list[str]:
    """The updates that are not those of the stored run."""
    faults = []
    for number in range(1, 4):
        if number not in found or number not in stored:
            faults.append(f"update {number}: nothing is printed")
            continue
        room = FIRST if number == 1 else LATER
        pairs = zip(found[number], stored[number], room, strict=True)
        if any(abs(one - other) > allowed for one, other, allowed in pairs):
            faults.append(
                f"update {number}: {found[number]}, and the book has {stored[number]}"
            )
    return faults


def main() -> int:
    given = os.environ.get("RL_NOTES_REAL_MODEL")
    if not given:
        fetch_real_model.main()
    model = Path(given or fetch_real_model.FOLDER).resolve()
    settings = {"RL_NOTES_REAL_MODEL": str(model)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = printed(run_cells(copied(Path(folder)), settings))
        except CellFailed as failure:
            print(failure, file=sys.stderr)
            return 1
    for number, figures in found.items():
        print(f"update {number}: right {figures[0]}, KL {figures[1]}", flush=True)
    if given:
        print("Not compared: the stored runs began with other weights.")
        return 0
    faults = far(found, printed(nbformat.read(CHAPTER, as_version=4)))
    print("\n".join(faults) or "As in the book.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
