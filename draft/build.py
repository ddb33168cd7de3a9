"""Build book/real_model.ipynb in /tmp/w/rm from cells.txt"""
import sys, re
from pathlib import Path
ROOT = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).resolve().parents[1])
sys.path[:0] = [ROOT + "/tools"]
from collections import Counter
from pathlib import Path
import nbformat
from run_notebooks import cell_id
text = Path(__file__).with_name("cells.txt").read_text()
setup = next(c.source for c in nbformat.read(ROOT + "/book/grpo.ipynb", 4).cells if c.cell_type == "code")
nb = nbformat.v4.new_notebook()
seen = Counter()
for part in re.split(r"^%%%% ", text, flags=re.M)[1:]:
    head, body = part.split("\n", 1)
    kind, *tags = head.split()
    if kind == "setup":
        kind, tags, body = "code", ["hide-input"], setup
    make = nbformat.v4.new_markdown_cell if kind == "md" else nbformat.v4.new_code_cell
    cell = make(body.strip("\n"))
    if tags:
        cell.metadata["tags"] = tags
    if "solution" in tags:
        tags.remove("solution"); cell.metadata["tags"] = tags
        cell.metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}, "mystnb": {"code_prompt_hide": "Hide the solution", "code_prompt_show": "Show the solution"}}
    elif "hide-cell" in tags:
        title = re.match(r"# @title (.*)", body).group(1)
        cell.metadata |= {"cellView": "form", "jupyter": {"source_hidden": True},
            "mystnb": {"code_prompt_hide": "Hide", "code_prompt_show": title}}
    cell["id"] = cell_id(cell.source, seen)
    nb.cells.append(cell)
nb.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
nbformat.write(nb, ROOT + "/book/real_model.ipynb")
print(len(nb.cells), "cells")
