r"""Let the book show a notebook as Jupyter and Colab show it.

Three things would otherwise differ. The alt text of a figure is stored in the metadata
of its output, `{"image/png": {"alt": "..."}}`; myst-nb reads only width and height
from there, and Sphinx then writes the name of the image file. And Sphinx wraps a
displayed equation that has `\\` in it into a `split` environment, in which MathJax
refuses `\tag`. And a line could break between an inline formula and its comma.
"""

import base64
import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def stored_alts(notebook: dict[str, Any]) -> dict[str, str]:
    """Map the SHA-256 of each stored image to the alt text that it came with."""
    outputs = (out for cell in notebook["cells"] for out in cell.get("outputs", []))
    return {
        image_hash(kind, output["data"][kind]): about["alt"]
        for output in outputs
        for kind, about in output.get("metadata", {}).items()
        if kind.startswith("image/") and "alt" in about
    }


def image_hash(kind: str, content: str | list[str]) -> str:
    """Hash an image as myst-nb does when it names the file it writes."""
    text = content if isinstance(content, str) else "".join(content)
    if kind == "image/svg+xml":
        data = os.linesep.join(text.splitlines()).encode("utf-8")
    else:
        data = base64.b64decode(text)
    return hashlib.sha256(data).hexdigest()


def set_alts(app: Sphinx, doctree: nodes.document) -> None:
    """Give each figure of a notebook the alt text stored beside it."""
    source = Path(app.env.doc2path(app.env.docname))
    if source.suffix != ".ipynb":
        return
    alts = stored_alts(json.loads(source.read_text(encoding="utf-8")))
    for image in doctree.findall(nodes.image):
        name = PurePosixPath(image["uri"]).stem
        if name in alts:
            image["alt"] = alts[name]


def keep_equations(app: Sphinx, doctree: nodes.document) -> None:
    """Hand displayed equations to MathJax exactly as they were written."""
    for equation in doctree.findall(nodes.math_block):
        if not equation.get("nowrap") and not equation.get("number"):
            text = f"\\[{equation.astext()}\\]"
            equation.children = [nodes.Text(text)]
            equation["nowrap"] = True


def keep_punctuation(app: Sphinx, doctree: nodes.document) -> None:
    """Hold an inline formula and what touches it, as in "(x)," or "k-th", together."""
    for formula in list(doctree.findall(nodes.math)):
        parent, place = formula.parent, formula.parent.index(formula)
        before, after = parent[:place], parent[place + 1 :]
        opening = closing = ""
        if before and isinstance(before[-1], nodes.Text):
            rest, opening = re.fullmatch(r"(.*?)(\S*)", before[-1], re.DOTALL).groups()
            before = [*before[:-1], nodes.Text(rest)]
        if after and isinstance(after[0], nodes.Text):
            closing, rest = re.fullmatch(r"(\S*)(.*)", after[0], re.DOTALL).groups()
            after = [nodes.Text(rest), *after[1:]]
        if opening or closing:
            kept = [nodes.Text(opening), formula, nodes.Text(closing)]
            group = nodes.inline("", "", *kept, classes=["math-and-punctuation"])
            parent.children = []
            parent.extend([*before, group, *after])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-read", set_alts)
    app.connect("doctree-read", keep_equations)
    app.connect("doctree-read", keep_punctuation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
