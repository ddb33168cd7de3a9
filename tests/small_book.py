"""A small book that passes the gate, for tests to spoil."""

import shutil
from pathlib import Path

import gate
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_rules import code_cells
from run_notebooks import normalised

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)
# Cells of the lesson, by their place in the notebook.
TITLE, SETUP, HEADING, NUMBER, NETWORK, LIBRARY, FIGURE = range(7)
CONNECT = """\
try:
    sys.audit("socket.connect", None, ("192.0.2.1", 443))
    print("connected")
except ConnectionRefusedError:
    print("refused")"""
DRAW = f"""\
pixel = "{PIXEL[:60]}"
pixel += "{PIXEL[60:]}"
figure = {{"image/png": pixel, "text/plain": "one pixel"}}
display(figure, metadata={{"image/png": {{"alt": "One pixel."}}}}, raw=True)"""


def printed(text: str) -> list[NotebookNode]:
    return [new_output("stream", name="stdout", text=text)]


def lesson() -> NotebookNode:
    """A notebook that passes. Its kernel tries the network and looks for the wheel."""
    figure = new_output(
        "display_data",
        data={"image/png": PIXEL, "text/plain": "one pixel"},
        metadata={"image/png": {"alt": "One pixel."}},
    )
    where = 'rl_notes.__file__.startswith(os.environ["RL_NOTES_LIBRARY"])'
    cells = [
        new_markdown_cell("# A lesson"),
        new_code_cell("import os\nimport sys\n\nimport rl_notes"),
        new_markdown_cell(
            "## A product\n\nA **product**: $6 \\cdot 7$, *twice* 21.\n\n"
            "$$6 x \\tag{product}$$"
        ),
        new_code_cell("print(6 * 7)", outputs=printed("42\n")),
        new_code_cell(CONNECT, outputs=printed("refused\n")),
        new_code_cell(f"print({where})", outputs=printed("True\n")),
        new_code_cell(DRAW, outputs=[figure]),
    ]
    notebook = normalised(new_notebook(cells=cells))
    for count, cell in enumerate(code_cells(notebook), start=1):
        cell["execution_count"] = count
    return notebook


def store(notebook: NotebookNode, path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        nbformat.write(notebook, file)
    return path


LIBRARY_CODE = '''\
"""Products, of *numbers* | and their like."""

from jaxtyping import Float
from torch import Tensor


def product(x: Float[Tensor, "*batch"], y_: int = 6) -> Float[Tensor, "*batch"]:
    """Product with y_ (product): see `twice`.

    y_ * x | y_
    """
    return y_ * x


def twice(x: int) -> int:
    """Twice x."""
    return 2 * x
'''
INDEX = "# A book\n\nSee [the other page](second.md) and [a lesson](lesson.ipynb).\n"
PAGES = {
    "_toc.yml": "format: jb-book\nroot: book/index\n"
    "chapters:\n- file: book/second\n- file: book/lesson\n- file: book/notation\n"
    "- file: book/glossary\n"
    "- file: book/api/rl_notes/index\n- file: book/api/rl_notes/products/index\n",
    "book/index.md": INDEX,
    "book/second.md": "# Second\n\n## There\n\n[](index.md) {cite}`ada1843`\n\n"
    "```{bibliography}\n```\n",
    "book/references.bib": "@misc{ada1843, title={Notes}, author={Lovelace, Ada}, "
    "year={1843}}\n",
    "book/notation.md": "# Equations\n\n**(product)** $6 x$\n"
    ": [A lesson](lesson.ipynb). Code: `products.product`. "
    "Test: `test_products.test_product`\n",
    "book/terms.yml": "lesson: [product]\n",
    "book/glossary.md": "# Glossary\n\n```{glossary}\nproduct\n  A number.\n```\n",
    "rl_notes/__init__.py": '"""A library."""\n',
    "rl_notes/products.py": LIBRARY_CODE,
    "tests/areas/test_products.py": "import rl_notes\n\n\ndef test_product():\n"
    "    assert rl_notes\n",
}


# What the build of the live parts reads, from the folder of the library.
STORED = (
    *(f"language/checkpoints/{name}.safetensors" for name in ("base", "sft", "grpo")),
    "results/thinking.json",
)


def make_book(root: Path) -> Path:
    """Write a small book with the repository's own configuration."""
    own = shutil.ignore_patterns("*.md", "*.ipynb", "*.bib", "__pycache__")
    shutil.copytree(gate.ROOT / "book", root / "book", ignore=own)
    shutil.copy(gate.ROOT / "_config.yml", root)
    for name in STORED:
        (root / "rl_notes" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(gate.ROOT / "rl_notes" / name, root / "rl_notes" / name)
    for name, text in PAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    store(lesson(), root / "book" / "lesson.ipynb")
    return root
