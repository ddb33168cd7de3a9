"""Execute notebooks in place, each from a fresh kernel, and store their outputs.

    python tools/run_notebooks.py [book/maze.ipynb ...]

The library is the working tree's. A file is written only when all of its cells ran,
and the same source always gives the same file.
"""

import asyncio
import hashlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from gate import CELL_SECONDS, ROOT, book_notebooks, environment
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from notebook_rules import CELL_METADATA, book_faults, notebook_faults

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}


class CellFailed(Exception):
    """A cell did not run to its end. The message says which, and why."""


def execute(path: Path) -> None:
    """Execute one notebook and store it with its outputs."""
    notebook = normalised(run_cells(path))
    nbformat.validate(notebook)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            nbformat.write(notebook, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def run_cells(path: Path, settings: Mapping[str, str] | None = None) -> NotebookNode:
    """Run every cell in an empty folder and return the notebook with its outputs.

    `settings` are variables of the environment, such as where to compute.
    """
    started: list[int] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = NotebookClient(
            nbformat.read(path, as_version=4),
            timeout=CELL_SECONDS,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],  # no word on TCP over loopback
            resources={"metadata": {"path": folder}},
            on_cell_start=lambda cell, cell_index: started.append(cell_index + 1),
        )
        try:
            # A loop of its own, so that notebooks may run in several threads.
            variables = environment(ROOT) | dict(settings or {})
            return asyncio.run(client.async_execute(env=variables))
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise CellFailed(f"{path.name}, cell {started[-1]}:\n{error}") from error


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Drop whatever differs between two machines or two runs."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info=LANGUAGE)
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        cell.id = cell_id(cell.source, seen)
        cell.metadata = NotebookNode(
            {key: cell.metadata[key] for key in CELL_METADATA & set(cell.metadata)}
        )
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
    return notebook


def cell_id(source: str, seen: Counter[str]) -> str:
    """Name a cell by its source, so that the name stays when others come and go."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    seen[digest] += 1
    return digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def merged(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring pieces of one stream: where a kernel cuts them is chance."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and stream(output) and stream(output) == stream(joined[-1]):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def stream(output: NotebookNode) -> str | None:
    """Return the name of the stream an output was written to, if it was."""
    return output.name if output.output_type == "stream" else None


def main(names: Sequence[str]) -> int:
    """Execute the named notebooks, or all of them, and stop at the first that fails."""
    paths = [Path(name) for name in names] or book_notebooks()
    for path in paths:
        start = time.monotonic()
        try:
            execute(path)
        except CellFailed as failure:
            print(f"{failure}\n{path.name} is unchanged.", file=sys.stderr)
            return 1
        print(f"{time.monotonic() - start:8.1f} s  {path.name}", flush=True)
    faults = [fault for path in paths for fault in notebook_faults(path)]
    faults += book_faults(book_notebooks())
    if faults:
        print("\n".join(["The gate will refuse:", *faults]), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
