r"""Tie every equation to its code: in the chapters, in the list of them, in the API.

`book/notation.md` names the function and the test of each equation. From there a line
of links is put below each equation with a `\tag` in a chapter, the entries of that page
get anchors and links, and "(clip)" in a docstring leads to the equation in its chapter.
The API pages themselves are written by sphinx-autoapi, from the sources: nothing is
imported, so that torch need not be there.
"""

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
TAG = re.compile(r"\\tag\{([^}]*)\}")
ENTRY = re.compile(
    r"^\*\*\((?P<name>[^)]*)\)\*\* .*\n"
    r": \[.*\]\((?P<chapter>\w+)\.ipynb\)\. "
    r"Code: `(?P<code>[\w.]+)`\. Test: `(?P<test>[\w.]+)`$",
    re.MULTILINE,
)
# What a signature need not spell out: where a type comes from.
FROM = re.compile(
    r"\b(?:jaxtyping|collections\.abc|torch(?:\.(?:optim|nn))?|typing|numpy|pathlib"
    r"|transformers|matplotlib\.(?:axes|figure)|gymnasium(?:\.vector)?)\.(?=[A-Z])"
)
SHAPE = re.compile(
    r"\b((?:Float|Int|Bool|Num|Shaped)(?:32|64)?\[\w+(?:\.\w+)?), ([^\]]*)\]"
)
# Other than in Markdown, a star, a bar and a trailing underscore mean something here.
SPECIAL = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")
LITERAL = re.compile(r"(`[^`]*`)")


class Entry(NamedTuple):
    """An entry of the page of equations."""

    name: str
    chapter: str
    code: str
    test: str


def entries() -> dict[str, Entry]:
    """The entries of the page of equations, by name."""
    page = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    found = [Entry(**match.groupdict()) for match in ENTRY.finditer(page)]
    return {entry.name: entry for entry in found}


def slug(name: str) -> str:
    """The name as part of an anchor."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def add_label(app: Sphinx, node: nodes.Element, label: str) -> None:
    """Give a node an anchor that `:ref:` finds from every page."""
    node["ids"].append(label)
    standard: Any = app.env.get_domain("std")
    standard.anonlabels[label] = (app.env.docname, label)


def link(app: Sphinx, text: nodes.Node, **target: Any) -> addnodes.pending_xref:
    """A link that is resolved once all pages are known."""
    where = {"refdoc": app.env.docname, "refexplicit": True, "refwarn": True}
    return addnodes.pending_xref("", text, **where, **target)


def to_code(app: Sphinx, code: str, shown: str) -> addnodes.pending_xref:
    """A link to a function of the library."""
    target = {"refdomain": "py", "reftype": "obj", "reftarget": f"rl_notes.{code}"}
    return link(app, nodes.literal("", shown), **target)


def to_label(app: Sphinx, label: str, shown: str) -> addnodes.pending_xref:
    """A link to an equation or to its entry."""
    target = {"refdomain": "std", "reftype": "ref", "reftarget": label}
    return link(app, nodes.inline("", shown), **target)


def to_test(app: Sphinx, test: str) -> nodes.reference:
    """A link to the test, in the repository."""
    file, name = test.split(".")
    (path,) = (ROOT / "tests").rglob(f"{file}.py")
    lines = path.read_text(encoding="utf-8").splitlines()
    line = 1 + next(n for n, text in enumerate(lines) if f"def {name}(" in text)
    home = app.config.html_theme_options["repository_url"]
    place = f"{home}/blob/main/{path.relative_to(ROOT).as_posix()}#L{line}"
    return nodes.reference("", "", nodes.literal("", test), refuri=place)


def tie_chapter(app: Sphinx, doctree: nodes.document) -> None:
    """Below each equation with a name: where it is in the code, and where listed."""
    known = entries()
    for equation in list(doctree.findall(nodes.math_block)):
        names = [name for name in TAG.findall(equation.astext()) if name in known]
        if not names or not app.env.docname.startswith("book/"):
            continue
        line = nodes.paragraph("", classes=["equation-links"])
        for name in names:
            code = known[name].code
            add_label(app, equation, f"eq-{slug(name)}")
            line += [
                nodes.Text("In code: "),
                to_code(app, code, code.rpartition(".")[2]),
                nodes.Text(". All equations: "),
                to_label(app, f"entry-{slug(name)}", f"({name})"),
                nodes.Text(". "),
            ]
        equation.parent.insert(equation.parent.index(equation) + 1, line)


def tie_entries(app: Sphinx, doctree: nodes.document) -> None:
    """On the page of equations: an anchor for each, a link to its code and its test."""
    if app.env.docname != "book/notation":
        return
    known = entries()
    for item in doctree.findall(nodes.definition_list_item):
        term = next(iter(item.findall(nodes.term)))
        name = re.match(r"\(([^)]*)\)", term.astext())
        if name is None or name[1] not in known:
            continue
        entry = known[name[1]]
        add_label(app, term, f"entry-{slug(entry.name)}")
        for chapter in list(item.findall(addnodes.pending_xref)):
            chapter.replace_self(
                to_label(app, f"eq-{slug(entry.name)}", chapter.astext())
            )
        for literal in list(item.findall(nodes.literal)):
            if literal.astext() == entry.code:
                literal.replace_self(to_code(app, entry.code, entry.code))
            elif literal.astext() == entry.test:
                literal.replace_self(to_test(app, entry.test))


def as_rst(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Write a docstring for Sphinx: names of equations as links, signs as signs."""
    known = entries()
    text = "\n".join(lines)
    pieces = LITERAL.split(text)
    for index in range(0, len(pieces), 2):
        pieces[index] = SPECIAL.sub(lambda sign: f"\\{sign[0]}", pieces[index])
        for entry in known.values():
            words = r"\s+".join(map(re.escape, entry.name.split()))
            pieces[index] = re.sub(
                rf"\({words}\)",
                f"(:ref:`{entry.name} <eq-{slug(entry.name)}>`)",
                pieces[index],
            )
    # A block that is set in, after a colon, is shown as it stands.
    lines[:] = re.sub(r":\n\n(?=    )", "::\n\n", "".join(pieces)).split("\n")


def short(signature: str) -> str:
    """A signature as a reader writes it: Float[Tensor, "N T"]."""
    signature = re.sub(r"\b(rl_notes\.updates)\.\w+\.", r"\1.", FROM.sub("", signature))
    return SHAPE.sub(r'\1, "\2"]', signature)


def skipped(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Only what is public; and nothing public without a docstring."""
    inside = name.startswith(("rl_notes.updates.", "rl_notes.maze."))
    if what == "module" and inside:
        return True  # the package's page shows what these hold
    public = not name.rpartition(".")[2].startswith("_")
    if what in ("function", "class") and public and not obj.docstring:
        logging.getLogger(__name__).warning("%s has no docstring", name)
    return None


def where_defined(
    app: Sphinx, env: Any, node: addnodes.pending_xref, contnode: nodes.TextElement
) -> nodes.Node | None:
    """A name in a docstring without its module: it is found if only one has it."""
    if node.get("refdomain") != "py" or "." in node.get("reftarget", "."):
        return None
    domain = env.get_domain("py")
    end = f".{node['reftarget']}"
    found = [full for full in domain.objects if full.endswith(end)]
    if not found:
        return None
    entry = domain.objects[min(found, key=len)]
    home = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    return nodes.reference(
        "", "", contnode, internal=True, refuri=f"{home}#{entry.node_id}"
    )


def defined(module: str, name: str) -> tuple[Path, int]:
    """The file and the line in which a name of a module is defined."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    first, _, rest = name.partition(".")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and any(
            a.name == first for a in node.names
        ):
            return defined(str(node.module), name)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == first:
            inside = {getattr(child, "name", ""): child for child in node.body}
            return path, inside[rest].lineno if rest else node.lineno
    raise LookupError(f"{module}.{name} is defined nowhere")


def prepare(app: Sphinx, config: Any) -> None:
    """What `_config.yml` cannot hold."""

    def source(domain: str, info: dict[str, str]) -> str | None:
        if not info["module"]:
            return None
        path, line = defined(info["module"], info["fullname"])
        home = config.html_theme_options["repository_url"]
        return f"{home}/blob/main/{path.relative_to(ROOT).as_posix()}#L{line}"

    config.linkcode_resolve = source
    config.autoapi_prepare_jinja_env = lambda env: env.filters.update(short=short)
    config.autoapi_template_dir = str(Path(__file__).parent / "api")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", prepare, priority=100)
    app.connect("autodoc-process-docstring", as_rst, priority=100)
    app.connect("autoapi-skip-member", skipped)
    app.connect("doctree-read", tie_chapter)
    app.connect("doctree-read", tie_entries)
    app.connect("missing-reference", where_defined)
    return {"parallel_read_safe": True}
