"""Give every executed cell of a notebook an anchor, so that a page can lead to it.

The anchor of the cell with the id 0b482070 is `cell-id=0b482070`, and a link to it is
written `[a loss of zero](grpo.ipynb#cell-id=0b482070)`. JupyterLab looks up the same
fragment (`setFragment` in its package `notebook`). The id is made from the source of
the cell: whoever changes the cell changes the address, the build then names the link
that leads nowhere, and what the link says is read again.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx


def anchor_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Name each code cell of a notebook by its id, for links and for MyST."""
    source = Path(app.env.doc2path(app.env.docname))
    if source.suffix != ".ipynb":
        return
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    # What MyST looks up when a link has a `#`: the line, the anchor, the words.
    known = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for node in doctree.findall(nodes.container):
        if node.get("nb_element") == "cell_code":
            anchor = f"cell-id={cells[node['cell_index']]['id']}"
            # A cell that is folded as a whole has it inside the fold, so that a browser
            # opens the fold for whoever follows a link.
            folded = node.get("hide_mode") == "all"
            (node.children[0] if folded else node)["ids"].append(anchor)
            known[anchor] = (node.line or 0, anchor, anchor)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", anchor_cells)
    return {"parallel_read_safe": True}
