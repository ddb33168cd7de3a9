"""The rules that a stored notebook must keep, read from its file without a kernel.

They close what nbval lets through (cleared notebooks, unrun cells, figures) and keep
notebooks readable in Jupyter, in Colab and in the book alike. Each rule yields
sentences that say where the fault is and what to do.
"""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

MAX_BYTES = 1_000_000
MAX_LINE = 79
MAX_SETUP_LINES = 13
MAX_IGNORED = 2
MAX_IGNORED_IN_BOOK = 6
IGNORE = "nbval-ignore-output"
TAGS = {"hide-input", "hide-output", "hide-cell", "raises-exception", IGNORE}
# What a cell may carry: its tags, and how the book, Colab and Jupyter fold it.
CELL_METADATA = {"tags", "mystnb", "cellView", "jupyter"}
# A figure on a phone, in CSS pixels, and the smallest text that is read there. The
# width and the text of a figure that says nothing of them, in inches and points.
COLUMN, SMALLEST = 350, 9
WIDTH, FONT = 6.2, 12
RERUN = "run `make notebooks`"

FOLDERS = "home|root|tmp|Users|work|usr|var|opt|mnt|private|content"
MACHINE_PATH = re.compile(
    rf"(?<![\w.:/+\-])/(?:{FOLDERS})(?![\w\-])"
    r"|\b[A-Z]:\\+(?:Users|Windows|Program)|(?<!\w)~/|file://"
)
NBVAL_COMMENT = re.compile(r"#\s*(?:NBVAL_|PYTEST_VALIDATE)\w*")
MYST = re.compile(
    r"^\s*(?:`{3,}|~{3,}|:{3,})\s*\{[^}]*\}"  # a directive
    r"|^\s*:{3,}"  # a colon fence
    r"|(?<![\w\\}])\{[a-z][\w:.+-]*\}`"  # a role
    r"|^\([\w:.-]+\)=\s*$"  # a target
    r"|^\+\+\+"  # a block break
    r"|\{\{.*?\}\}",  # a substitution
    re.MULTILINE,
)
FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.MULTILINE | re.DOTALL)
# A name space is an address that nothing asks for.
ADDRESS = re.compile(r"https?://(?!www\.w3\.org/)[^\s\"'<>)]+")
ACTIVE = ("application/javascript", "application/vnd.jupyter.widget-view+json")

Cell = dict[str, Any]
Notebook = dict[str, Any]


def load(path: Path) -> Notebook:
    """Read a notebook file."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def text(value: str | Sequence[str]) -> str:
    """Join what the notebook format may store as a list of lines."""
    return value if isinstance(value, str) else "".join(value)


def source(cell: Cell) -> str:
    return text(cell["source"])


def tags(cell: Cell) -> list[str]:
    names: list[str] = cell["metadata"].get("tags", [])
    return names


def code_cells(notebook: Notebook) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def setup_cell(notebook: Notebook) -> str:
    """Return the source of the first code cell."""
    return next(map(source, code_cells(notebook)), "").strip()


def notebook_faults(path: Path) -> list[str]:
    """Return every fault of one notebook, each a sentence that names the place."""
    notebook = load(path)
    faults = [f"{path.name}: {fault}" for fault in whole_faults(path, notebook)]
    count = 0
    for number, cell in enumerate(notebook["cells"], start=1):
        where = f"{path.name}, cell {number}"
        found = [*common_faults(cell)]
        if cell["cell_type"] == "code":
            count += 1
            found += run_faults(cell, count)
            found += code_faults(cell)
            found += room_faults(cell)
            found += small_print_faults(cell)
            found += output_faults(cell)
        elif cell["cell_type"] == "markdown":
            found += text_faults(cell, first=number == 1)
        else:
            found.append("is neither text nor code: choose one of them")
        faults += [f"{where}: {fault}" for fault in found]
    return faults


def book_faults(paths: Sequence[Path]) -> list[str]:
    """Return the faults that only show when the notebooks are seen together."""
    notebooks = {path.name: load(path) for path in paths}
    faults = []
    setups = {name: setup_cell(notebook) for name, notebook in notebooks.items()}
    model = next(iter(setups), "")
    for name, setup in setups.items():
        if setup != setups[model]:
            faults.append(
                f"{name}: its first code cell is not the set-up cell of {model}: "
                "copy that cell unchanged"
            )
    ignored = sum(
        IGNORE in tags(cell)
        for notebook in notebooks.values()
        for cell in code_cells(notebook)
    )
    if ignored > MAX_IGNORED_IN_BOOK:
        faults.append(
            f"the book has {ignored} cells tagged {IGNORE}, and {MAX_IGNORED_IN_BOOK} "
            "are allowed: print something that every run repeats"
        )
    return faults


# Rules for the notebook as a whole


def whole_faults(path: Path, notebook: Notebook) -> Iterator[str]:
    size = path.stat().st_size
    if size > MAX_BYTES:
        yield f"has {size:,} bytes, over {MAX_BYTES:,}: draw smaller or fewer figures"
    yield from metadata_faults(notebook)
    yield from outline_faults(notebook)
    cells = code_cells(notebook)
    if not cells:
        yield "has no code cell: write it as a .md page"
        return
    if all(cell["execution_count"] is None for cell in cells):
        yield f"is cleared, so nothing in it can be checked: {RERUN}"
    if len(setup_cell(notebook).splitlines()) > MAX_SETUP_LINES:
        yield f"its set-up cell has more than {MAX_SETUP_LINES} lines: shorten it"
    ignored = sum(IGNORE in tags(cell) for cell in cells)
    if ignored > MAX_IGNORED:
        yield (
            f"has {ignored} cells tagged {IGNORE}, and {MAX_IGNORED} are allowed: "
            "print something that every run repeats"
        )


def metadata_faults(notebook: Notebook) -> Iterator[str]:
    metadata = notebook["metadata"]
    if metadata.get("kernelspec", {}).get("name") != "python3":
        yield f"its kernel is not python3: {RERUN}"
    if "version" in metadata.get("language_info", {}):
        yield f"stores the Python version of one machine: {RERUN}"
    if "widgets" in metadata:
        yield "stores the state of widgets, which the book cannot show: use a figure"


def outline_faults(notebook: Notebook) -> Iterator[str]:
    cells = notebook["cells"]
    prose = [
        FENCED.sub("", source(cell)) if cell["cell_type"] == "markdown" else ""
        for cell in cells
    ]
    titles = [len(re.findall(r"^# ", part, re.MULTILINE)) for part in prose]
    if not cells or not prose[0].startswith("# "):
        yield "has no title: begin the first cell with `# ` and the chapter's title"
    if sum(titles) > 1:
        yield "has more than one title: write the other headings with `## `"
    if not any(re.search(r"^## ", part, re.MULTILINE) for part in prose):
        yield "has no section: give it at least one `## ` heading"


# Rules for one cell


def common_faults(cell: Cell) -> Iterator[str]:
    for tag in sorted(set(tags(cell)) - TAGS):
        yield f"has the tag {tag!r}, and only {', '.join(sorted(TAGS))} are allowed"
    for key in sorted(set(cell["metadata"]) - CELL_METADATA):
        yield f"stores the metadata {key!r}: {RERUN}"
    path = MACHINE_PATH.search(source(cell))
    if path:
        yield f"names {path.group()!r}, a path of one machine: use a relative path"
    if not source(cell).strip():
        yield "is empty: delete it"


def run_faults(cell: Cell, count: int) -> Iterator[str]:
    stored = cell["execution_count"]
    if stored is None:
        yield f"was not run: {RERUN}"
    elif stored != count:
        yield f"has the execution count {stored} where {count} belongs: {RERUN}"


def code_faults(cell: Cell) -> Iterator[str]:
    lines = source(cell).splitlines()
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE:
            yield f"line {number} has {len(line)} characters, over {MAX_LINE}: wrap it"
    comment = NBVAL_COMMENT.search(source(cell))
    if comment:
        yield f"has the comment {comment.group()!r}: use the tag {IGNORE}, if you must"
    if "hide-cell" in tags(cell) and "mystnb" not in cell["metadata"]:
        yield (
            "is folded and does not say what is in it: give it the metadata `mystnb` "
            "(code_prompt_show), `cellView` and `jupyter` of the other folded cells"
        )
    code = [line for line in lines if not line.lstrip().startswith("#")]
    if "\n".join(code).rstrip().endswith(";"):
        yield "ends with `;`, which only hides the output in Jupyter: write `_ = ...`"


def room_faults(cell: Cell) -> Iterator[str]:
    """Two results in one print are compared: their rooms must not swallow that."""
    lines = source(cell).splitlines()
    code = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a magic within a block; such cells print no result
        return
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "print"):
            continue
        rooms = [room for part in ast.walk(call) if (room := room_of(part))]
        for (one, its), (other, whose) in combinations(rooms, 2):
            if one != other and abs(one - other) <= its + whose:
                yield (
                    f"prints {one} within {its} and {other} within {whose} in one line:"
                    " the rooms swallow the difference"
                )


def small_print_faults(cell: Cell) -> Iterator[str]:
    """On a phone a figure is as wide as the column, and its text shrinks with it."""
    code = source(cell)
    widths = [float(found) for found in re.findall(r"figsize=\(\s*([\d.]+)", code)]
    fonts = [float(size) for size in re.findall(r"(?:font|label)size=([\d.]+)", code)]
    fonts += [FONT] if widths else []
    if not fonts:
        return
    inches = max(widths, default=WIDTH)
    seen = min(fonts) / 72 * COLUMN / inches
    if seen < SMALLEST:
        yield (
            f"has text of {min(fonts):g} points in a figure {inches:g} inches wide: "
            f"{seen:.1f} pixels on a phone, where {SMALLEST} are needed. Make the "
            "figure narrower or the text larger"
        )


def room_of(node: ast.AST) -> tuple[float, float] | None:
    """Return what `about` expects and within which room, where both are written out."""
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "about"):
        return None
    written = [*node.args[1:2], *(word.value for word in node.keywords)]
    try:
        expected, within = (float(ast.literal_eval(part)) for part in written)
    except (ValueError, TypeError):
        return None
    return expected, within


def text_faults(cell: Cell, *, first: bool) -> Iterator[str]:
    prose = source(cell)
    directive = MYST.search(prose)
    if directive:
        yield (
            f"has MyST markup ({directive.group().strip()!r}), which Jupyter and Colab "
            "show as it stands: use plain Markdown, or a .md page"
        )
    if not first and re.search(r"^# ", FENCED.sub("", prose), re.MULTILINE):
        yield "has a title, and only the first cell may: write `## `"
    if re.search(r"!\[\s*\]\(", prose):
        yield "has an image without alt text: say in ![...] what it shows"
    yield from html_faults(prose)


def output_faults(cell: Cell) -> Iterator[str]:
    for output in cell["outputs"]:
        kind = output["output_type"]
        if kind == "stream" and output["name"] == "stderr":
            yield f"wrote to stderr ({text(output['text'])[:60]!r}): mend the cause"
        if kind == "error" and "raises-exception" not in tags(cell):
            yield f"stores an error ({output['ename']}): mend it and {RERUN}"
        path = MACHINE_PATH.search(output_text(output))
        if path:
            yield f"printed {path.group()!r}, a path of one machine: print the name"
        yield from display_faults(output)


def output_text(output: Cell) -> str:
    """Return all that an output says in letters."""
    if output["output_type"] == "stream":
        return text(output["text"])
    if output["output_type"] == "error":
        return "\n".join([output["evalue"], *output["traceback"]])
    data = output["data"].items()
    return "\n".join(text(value) for kind, value in data if kind.startswith("text/"))


def display_faults(output: Cell) -> Iterator[str]:
    for kind, value in output.get("data", {}).items():
        if kind in ACTIVE:
            yield f"stores {kind}, which does not work in the book: use a static figure"
        if kind.startswith("image/"):
            alt = output.get("metadata", {}).get(kind, {}).get("alt", "")
            if not alt.strip():
                yield (
                    "has a figure without alt text: display it with "
                    f"metadata={{{kind!r}: {{'alt': '...'}}}}"
                )
        if kind in ("text/html", "text/markdown"):
            yield from html_faults(text(value))
        if kind == "image/svg+xml":
            yield from (fault for fault in html_faults(text(value)) if "http" in fault)


class Page(HTMLParser):
    """Collects what stored HTML lacks or asks other hosts for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.code = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.code = tag in ("script", "style")
        if tag == "img" and not values.get("alt", "").strip():
            self.faults.append("has an <img> without alt text: say what it shows")
        if tag in ("svg", "canvas", "video") and not named(values):
            self.faults.append(f"has a <{tag}> without aria-label: say what it shows")
        if tag != "a":
            for name, value in values.items():
                if not name.startswith("xmlns") and asks_elsewhere(value):
                    self.ask(value)

    def handle_endtag(self, tag: str) -> None:
        self.code = False

    def handle_data(self, data: str) -> None:
        found = ADDRESS.search(data) if self.code else None
        if found:
            self.ask(found.group())

    def ask(self, address: str) -> None:
        self.faults.append(
            f"asks another host for {address[:60]!r}: a page must work without network"
        )


def named(values: dict[str, str]) -> bool:
    """Tell whether an element has a text for those who do not see it."""
    label = values.get("aria-label", "") + values.get("aria-labelledby", "")
    return bool(label.strip()) or values.get("aria-hidden") == "true"


def asks_elsewhere(value: str) -> bool:
    """Tell whether an attribute names something on another host."""
    return bool(ADDRESS.search(value)) or value.startswith("//")


def html_faults(html: str) -> list[str]:
    """Return what is wrong with HTML in a text cell or an output."""
    return Page(html).faults
