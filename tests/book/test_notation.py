"""Every equation of the book has its code and its test, under the same name."""

import ast
import importlib
import inspect
import re

import pytest
from gate import ROOT, book_notebooks
from notebook_rules import load, text

TAG = re.compile(r"\\tag\{([^}]*)\}")
ENTRY = re.compile(
    r"^\*\*\((?P<name>[^)]*)\)\*\* .*\n"
    r": \[.*\]\((?P<chapter>\w+)\.ipynb\)\. "
    r"Code: `(?P<code>[\w.]+)`\. Test: `(?P<test>[\w.]+)`$",
    re.MULTILINE,
)
PAGE = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
ENTRIES = [match.groupdict() for match in ENTRY.finditer(PAGE)]


def tags() -> list[tuple[str, str]]:
    """The name of every equation, and the chapter that shows it, in order."""
    return [
        (name, path.stem)
        for path in book_notebooks()
        for cell in load(path)["cells"]
        if cell["cell_type"] == "markdown"
        for name in TAG.findall(text(cell["source"]))
    ]


def test_no_equation_is_left_out_and_none_is_invented():
    assert sorted((e["name"], e["chapter"]) for e in ENTRIES) == sorted(tags())


def test_a_name_belongs_to_one_equation():
    names = [name for name, _ in tags()]
    assert sorted(set(names)) == sorted(names)


def test_no_entry_is_missed_by_this_test():
    assert PAGE.count("**(") == len(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_the_code_knows_its_name_and_the_test_exists(entry: dict[str, str]):
    module, name = entry["code"].rsplit(".", 1)
    code = getattr(importlib.import_module(f"rl_notes.{module}"), name)
    # A name may go over the end of a line.
    assert f"({entry['name']})" in " ".join((inspect.getdoc(code) or "").split())

    file, test = entry["test"].split(".")
    (path,) = (ROOT / "tests").rglob(f"{file}.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert test in {node.name for node in tree.body if hasattr(node, "name")}


def test_every_module_has_its_page_in_the_reference_and_in_its_table():
    hidden = ("exercises", "results", "updates/", "maze/")
    modules = {
        path.relative_to(ROOT / "rl_notes").with_suffix("").as_posix()
        for path in (ROOT / "rl_notes").rglob("*.py")
    }
    modules = {name.removesuffix("/__init__") for name in modules} - {"__init__"}
    shown = {name for name in modules if not name.startswith(hidden)}
    assert {"objectives", "updates", "maze", "language/generation"} < shown
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"api/rl_notes/(\S+)/index", toc)) == shown
    table = (ROOT / "book" / "reference.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"api/rl_notes/(\S+)/index", table))
    assert listed == shown - {"language"}
