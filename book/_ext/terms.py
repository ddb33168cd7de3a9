"""Tie the words of the book together: a search, the chapters and the glossary.

A search for a term gives the chapter that teaches it before any other page: Sphinx
lists pages with an index entry of just these words first. The chapters are notebooks,
whose cells hold plain Markdown and no index entries, so these come from
`book/terms.yml`, and the entries of the glossary come after. And where a chapter
introduces a term, in bold, it leads to the glossary.
"""

import re
from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

GLOSSARY = re.compile(r"```\{glossary\}\n(.*?)```", re.DOTALL)


def index(app: Sphinx, doctree: nodes.document) -> None:
    """Add the page's terms to the index; let those of the glossary come later."""
    name = app.env.docname
    if name == "book/glossary":
        for node in doctree.findall(addnodes.index):
            # "main" is what puts an entry before the other results.
            node["entries"] = [(*e[:3], "", e[4]) for e in node["entries"]]
    page = Path(app.srcdir, "book", "terms.yml").read_text(encoding="utf-8")
    terms = yaml.safe_load(page).get(name.removeprefix("book/"), [])
    entries = [("single", term, "", "main", None) for term in terms]
    doctree.insert(0, addnodes.index(entries=entries))


def glossary(app: Sphinx) -> dict[str, str]:
    """The terms of the glossary, by their words in small letters."""
    page = Path(app.srcdir, "book", "glossary.md")
    if not page.exists():
        return {}
    found = GLOSSARY.search(page.read_text(encoding="utf-8"))
    lines = found[1].splitlines() if found else []
    return {line.lower(): line for line in lines if line and line[0] != " "}


def link_terms(app: Sphinx, doctree: nodes.document) -> None:
    """In a notebook: a term of the glossary, in bold, leads there, the first time."""
    if not app.env.doc2path(app.env.docname).endswith(".ipynb"):
        return
    terms = glossary(app)
    for strong in list(doctree.findall(nodes.strong)):
        words = " ".join(strong.astext().lower().split())
        term = terms.pop(words, None) or terms.pop(words.removesuffix("s"), None)
        if term is not None:
            link = addnodes.pending_xref(
                "",
                strong.deepcopy(),
                refdomain="std",
                reftype="term",
                reftarget=term,
                refdoc=app.env.docname,
                refexplicit=True,
                refwarn=True,
            )
            strong.replace_self(link)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", index)
    app.connect("doctree-read", link_terms)
    return {"parallel_read_safe": True}
