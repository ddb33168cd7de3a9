"""The gate can fail: a copy of a passing book is refused for each planted fault."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gate
import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from notebook_rules import (
    IGNORE,
    MAX_IGNORED,
    MAX_IGNORED_IN_BOOK,
    book_faults,
    code_cells,
    notebook_faults,
)
from run_notebooks import CellFailed, execute
from site_rules import site_faults
from small_book import (
    FIGURE,
    HEADING,
    INDEX,
    NUMBER,
    SETUP,
    TITLE,
    lesson,
    make_book,
    printed,
    store,
)

# The rules for stored notebooks


def clear(notebook: NotebookNode) -> None:
    for cell in code_cells(notebook):
        cell.update(execution_count=None, outputs=[])


def remove_code(notebook: NotebookNode) -> None:
    notebook.cells = [notebook.cells[TITLE], notebook.cells[HEADING]]


def set_cell(place: int, **fields: object) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[place].update(fields)


def set_output(*outputs: NotebookNode) -> Callable[[NotebookNode], None]:
    return set_cell(NUMBER, outputs=list(outputs))


def tag(place: int, *names: str) -> Callable[[NotebookNode], None]:
    return set_cell(place, metadata=NotebookNode(tags=list(names)))


def remove_alt(notebook: NotebookNode) -> None:
    notebook.cells[FIGURE].outputs[0].metadata = NotebookNode()


def ignore_many(notebook: NotebookNode) -> None:
    counts = range(6, 7 + MAX_IGNORED)
    extra = [new_code_cell("1", execution_count=count) for count in counts]
    for cell in extra:
        cell.metadata.tags = [IGNORE]
    notebook.cells += extra


def set_metadata(**fields: object) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.metadata.update(fields)


def shown(kind: str, value: str) -> Any:
    return new_output("display_data", data={kind: value})


ERROR = new_output("error", ename="KeyError", evalue="'x'", traceback=["KeyError: 'x'"])
STDERR = new_output("stream", name="stderr", text="UserWarning: careful")
FAULTS = {
    "cleared": (clear, "is cleared"),
    "unrun": (set_cell(NUMBER, execution_count=None), "cell 4: was not run"),
    "order": (set_cell(NUMBER, execution_count=9), "count 9 where 2 belongs"),
    "error": (set_output(ERROR), "cell 4: stores an error (KeyError)"),
    "stderr": (set_output(STDERR), "cell 4: wrote to stderr"),
    "path": (set_output(*printed("to /home/ada/x.png\n")), "cell 4: printed '/home'"),
    "path in code": (set_cell(NUMBER, source='open("/tmp/x")'), "cell 4: names '/tmp'"),
    "Windows path": (set_output(*printed("C:\\Users\\ada")), "cell 4: printed 'C:"),
    "tag": (tag(NUMBER, "remove-cell"), "cell 4: has the tag 'remove-cell'"),
    "skip": (tag(NUMBER, "nbval-skip"), "cell 4: has the tag 'nbval-skip'"),
    "comment": (set_cell(NUMBER, source="# NBVAL_SKIP\n1"), "comment '# NBVAL_SKIP'"),
    "ignored": (ignore_many, f"has {MAX_IGNORED + 1} cells tagged {IGNORE}"),
    "semicolon": (set_cell(NUMBER, source="6 * 7;  \n# so"), "cell 4: ends with `;`"),
    "alt": (remove_alt, "cell 7: has a figure without alt text"),
    "html alt": (
        set_output(shown("text/html", '<img src="data:image/png;base64,AA" alt="">')),
        "cell 4: has an <img> without alt text",
    ),
    "text alt": (
        set_cell(HEADING, source="## Look\n\n![](attachment:a.png)"),
        "cell 3: has an image without alt text",
    ),
    "text html alt": (
        set_cell(HEADING, source='## Look\n\n<img src="a.png">'),
        "cell 3: has an <img> without alt text",
    ),
    "svg label": (
        set_output(shown("text/html", "<svg><path/></svg>")),
        "cell 4: has a <svg> without aria-label",
    ),
    "directive": (
        set_cell(HEADING, source="## Look\n\n```{note}\nHi\n```"),
        "cell 3: has MyST markup ('```{note}')",
    ),
    "colons": (set_cell(HEADING, source="## Look\n\n:::{tip}\nHi\n:::"), "MyST markup"),
    "role": (set_cell(HEADING, source="## Look\n\nSee {eq}`clip`."), "('{eq}`')"),
    "size": (set_output(*printed("0" * 1_000_001)), "bytes, over 1,000,000"),
    "long line": (set_cell(NUMBER, source="1 + 1  # " + "." * 71), "has 80 characters"),
    "other host": (
        set_output(
            shown("text/html", '<script src="https://cdn.example/x.js"></script>')
        ),
        "cell 4: asks another host for 'https://cdn.example/x.js'",
    ),
    "import": (
        set_output(shown("text/html", "<style>@import 'https://cdn.example'</style>")),
        "cell 4: asks another host",
    ),
    "script": (set_output(shown("application/javascript", "1")), "static figure"),
    "widget": (set_metadata(widgets={"state": {}}), "state of widgets"),
    "kernel": (set_metadata(kernelspec={"name": "torch-env"}), "kernel is not python3"),
    "version": (set_metadata(language_info={"version": "3.11.7"}), "Python version"),
    "timing": (
        set_cell(NUMBER, metadata=NotebookNode(execution={})),
        "cell 4: stores the metadata 'execution'",
    ),
    "title": (set_cell(TITLE, source="A lesson"), "has no title"),
    "no code": (remove_code, "has no code cell"),
    "second title": (set_cell(TITLE, source="# A\n\n# B"), "more than one title"),
    "two titles": (set_cell(HEADING, source="# Again"), "cell 3: has a title"),
    "sections": (set_cell(HEADING, source="### Deep"), "has no section"),
    "long set-up": (set_cell(SETUP, source="import os\n" * 14), "more than 13 lines"),
    "narrow difference": (
        set_cell(
            NUMBER,
            source="print(about(a, 0.62, within=0.03), about(b, 0.66, within=0.03))",
        ),
        "the rooms swallow the difference",
    ),
    "nameless fold": (
        set_cell(NUMBER, metadata=NotebookNode(tags=["hide-cell"])),
        "cell 4: is folded and does not say what is in it",
    ),
    "small print": (
        set_cell(NUMBER, source="ax.text(0, 0, 'here', fontsize=9)"),
        "cell 4: has text of 9 points in a figure 6.2 inches wide: 7.1 pixels",
    ),
    "wide figure": (
        set_cell(NUMBER, source="figure, ax = plt.subplots(figsize=(9, 4))"),
        "has text of 12 points in a figure 9 inches wide: 6.5 pixels",
    ),
    "empty": (set_cell(NUMBER, source=" "), "cell 4: is empty"),
    "raw": (set_cell(HEADING, cell_type="raw"), "cell 3: is neither text nor code"),
}


def test_the_lesson_keeps_the_rules(tmp_path: Path):
    assert notebook_faults(store(lesson(), tmp_path / "lesson.ipynb")) == []


@pytest.mark.parametrize(("plant", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_named(
    plant: Callable[[NotebookNode], None], reason: str, tmp_path: Path
):
    notebook = lesson()
    plant(notebook)
    path = tmp_path / "lesson.ipynb"
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    faults = notebook_faults(path)
    assert [fault for fault in faults if reason in fault], faults
    assert all(fault.startswith("lesson.ipynb") for fault in faults)


@pytest.mark.parametrize(
    "plant",
    [
        set_cell(HEADING, source="## Look\n\n$$V:\\mathcal{S} \\to R \\tag{clip}$$"),
        set_cell(HEADING, source="## Look\n\n```python\n# a comment\n```"),
        set_cell(HEADING, source="## Look\n\n<https://example.org/home/> or/and `x`."),
        set_cell(
            HEADING, source="## Look\n\n<details><summary>A</summary>\n</details>"
        ),
        set_output(shown("text/html", '<a href="https://example.org">a paper</a>')),
        set_output(
            shown(
                "text/html",
                '<svg xmlns="http://www.w3.org/2000/svg" aria-label="a dot"></svg>',
            )
        ),
        tag(NUMBER, "hide-input", IGNORE),
    ],
)
def test_what_a_chapter_needs_is_allowed(
    plant: Callable[[NotebookNode], None], tmp_path: Path
):
    notebook = lesson()
    plant(notebook)
    assert notebook_faults(store(notebook, tmp_path / "lesson.ipynb")) == []


def test_an_error_that_is_meant_is_allowed(tmp_path: Path):
    notebook = lesson()
    set_output(ERROR)(notebook)
    tag(NUMBER, "raises-exception")(notebook)
    assert notebook_faults(store(notebook, tmp_path / "lesson.ipynb")) == []


def test_set_up_cells_are_the_same_everywhere(tmp_path: Path):
    other = lesson()
    first = store(other, tmp_path / "a.ipynb")
    assert book_faults([first, store(other, tmp_path / "b.ipynb")]) == []
    other.cells[SETUP].source += " as rl"
    (fault,) = book_faults([first, store(other, tmp_path / "b.ipynb")])
    assert fault.startswith("b.ipynb: its first code cell is not the set-up cell of a")


def test_ignored_cells_are_counted_over_the_whole_book(tmp_path: Path):
    notebook = lesson()
    tag(NUMBER, IGNORE)(notebook)
    names = map(str, range(MAX_IGNORED_IN_BOOK + 1))
    paths = [store(notebook, tmp_path / f"{name}.ipynb") for name in names]
    assert book_faults(paths[1:]) == []
    (fault,) = book_faults(paths)
    assert f"the book has {MAX_IGNORED_IN_BOOK + 1} cells tagged" in fault


# nbval


def test_nbval_passes_the_lesson(tmp_path: Path):
    path = store(lesson(), tmp_path / "lesson.ipynb")
    seconds = gate.run_nbval([path])
    assert seconds["lesson.ipynb"] > 0


def test_nbval_refuses_a_wrong_number(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    notebook = lesson()
    set_output(*printed("43\n"))(notebook)
    path = store(notebook, tmp_path / "lesson.ipynb")
    assert notebook_faults(path) == []
    with pytest.raises(gate.Refused, match="pytest"):
        gate.run_nbval([path])
    report = capfd.readouterr().out
    assert "1 failed, 4 passed" in report
    assert "print(6 * 7)" in report
    assert "43" in report


def test_no_notebooks_are_refused():
    with pytest.raises(gate.Refused, match="no notebooks"):
        gate.run_nbval([])


@pytest.mark.parametrize("state", ["", "<skipped/>"])
def test_a_cell_that_nbval_did_not_check_is_refused(state: str, tmp_path: Path):
    path = store(lesson(), tmp_path / "lesson.ipynb")
    case = '<testcase classname="lesson.lesson.ipynb" time="0.5">{}</testcase>'
    report = tmp_path / "report.xml"
    cases = [case.format("")] * 4 + [case.format(state)] * (state != "")
    report.write_text(f"<suite>{''.join(cases)}</suite>", encoding="utf-8")
    with pytest.raises(gate.Refused, match="checked 4 of 5 cells"):
        gate.read_report(report, [path])
    report.write_text(f"<suite>{case.format('') * 5}</suite>", encoding="utf-8")
    assert gate.read_report(report, [path]) == {"lesson.ipynb": 2.5}


# make notebooks


def test_execution_restores_exactly_what_is_stored(tmp_path: Path):
    stored = store(lesson(), tmp_path / "stored.ipynb")
    notebook = lesson()
    clear(notebook)
    notebook.metadata = NotebookNode(author="Ada", kernelspec={"name": "mine"})
    notebook.cells[NUMBER].metadata = NotebookNode(tags=["hide-input"], scrolled=True)
    path = store(notebook, tmp_path / "lesson.ipynb")
    execute(path)
    assert nbformat.read(path, 4).cells[NUMBER].metadata == {"tags": ["hide-input"]}
    text = path.read_text(encoding="utf-8")
    tags = '{\n    "tags": [\n     "hide-input"\n    ]\n   }'
    assert text.replace(tags, "{}") == stored.read_text(encoding="utf-8")


def test_a_failing_notebook_is_left_as_it_was(tmp_path: Path):
    notebook = lesson()
    set_cell(NUMBER, source="1 / 0")(notebook)
    path = store(notebook, tmp_path / "lesson.ipynb")
    before = path.read_bytes()
    with pytest.raises(CellFailed, match=r"(?s)lesson.ipynb, cell 4:.*ZeroDiv"):
        execute(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# make notebooks-gpu


def test_on_cuda_asserts_count_and_outputs_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    paths = []
    for name, value in (("right", 42), ("wrong", 43)):
        notebook = lesson()
        source = f"assert os.environ['RL_NOTES_DEVICE'] == 'cuda'\nassert 42 == {value}"
        set_cell(NUMBER, source=source)(notebook)  # and 42 is not printed
        paths.append(store(notebook, tmp_path / f"{name}.ipynb"))
    monkeypatch.setattr(gate, "book_notebooks", lambda: paths)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(gate.Refused, match=r"(?s)^wrong.ipynb, cell 4:.*AssertionErr"):
        gate.notebooks_gpu()
    assert capsys.readouterr().out.split()[2:] == ["right.ipynb"]
    paths.pop()
    gate.notebooks_gpu()


def test_without_cuda_there_is_nothing_to_say_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(gate.Refused, match="no CUDA device"):
        gate.notebooks_gpu()


# The build and the built pages


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages of a book that passes."""
    return gate.build_book(make_book(tmp_path_factory.mktemp("book")))


@pytest.mark.xdist_group("built")
def test_the_small_book_passes(built: Path):
    assert site_faults(built) == []
    assert 'alt="One pixel."' in (built / "book" / "lesson.html").read_text("utf-8")


def links(page: Path, inside: str) -> dict[str, str]:
    """Of the links in part of a page: the words, and where each leads."""
    html = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    return {a.get_text(): str(a["href"]) for a in html.select(f"{inside} a")}


@pytest.mark.xdist_group("built")
def test_an_equation_its_code_its_entry_and_its_test_are_one_click_apart(built: Path):
    code = "api/rl_notes/products/index.html#rl_notes.products.product"
    # Below the equation, and at the equation's entry.
    below = links(built / "book" / "lesson.html", ".equation-links")
    assert below == {"product": code, "(product)": "notation.html#entry-product"}
    entry = links(built / "book" / "notation.html", "dl")
    assert entry["A lesson"] == "lesson.html#eq-product"
    assert entry["products.product"] == code
    test = "/blob/main/tests/areas/test_products.py#L4"
    assert entry["test_products.test_product"].endswith(test)
    # And back: from the function to the equation, to the source, to its neighbour.
    page = built / "book" / "api" / "rl_notes" / "products" / "index.html"
    back = links(page, "dl")
    assert back["product"] == "../../../lesson.html#eq-product"
    assert back["[source]"].endswith("/blob/main/rl_notes/products.py#L15")
    assert back["twice"] == "#rl_notes.products.twice"


@pytest.mark.xdist_group("built")
def test_a_signature_is_written_as_a_reader_writes_it(built: Path):
    page = built / "book" / "api" / "rl_notes" / "products" / "index.html"
    text = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").get_text()
    signature = "product(x:Float[Tensor,'*batch'],y_:int=6)→Float[Tensor,'*batch']"
    assert signature in "".join(text.split()).replace(",)", ")")
    assert "Product with y_ (product): see twice." in text
    assert "y_ * x | y_" in text


@pytest.mark.xdist_group("built")
@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_a_search_gives_the_chapter_that_teaches_the_term_first(built: Path):
    script = Path(__file__).with_name("search.js")
    command = ["node", str(script), str(built), "product"]
    done = subprocess.run(command, capture_output=True, check=True, encoding="utf-8")
    found = done.stdout.split()
    assert found[0] == "book/lesson"
    assert {"book/api/rl_notes/products/index", "book/glossary"} < set(found)


@pytest.mark.xdist_group("built")
def test_a_term_in_bold_leads_to_the_glossary(built: Path):
    found = links(built / "book" / "lesson.html", "p:not(.equation-links)")
    assert found["product"] == "glossary.html#term-product"


def test_a_public_name_without_a_docstring_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    root = make_book(tmp_path)
    with (root / "rl_notes" / "products.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef thrice(x: int) -> int:\n    return 3 * x\n")
    with pytest.raises(gate.Refused, match="jupyter-book"):
        gate.build_book(root)
    assert "rl_notes.products.thrice has no docstring" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("[There](second.md#nowhere)", "nowhere"),
        ("{ref}`nowhere`", "undefined label: 'nowhere'"),
        ("{cite}`nobody2020`", 'could not find bibtex key "nobody2020"'),
    ],
)
def test_the_build_refuses(
    fault: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    root = make_book(tmp_path)
    page = root / "book" / "index.md"
    page.write_text(f"{INDEX}\n{fault}\n", encoding="utf-8")
    with pytest.raises(gate.Refused, match="jupyter-book"):
        gate.build_book(root)
    (warning,) = [x for x in capfd.readouterr().out.splitlines() if "WARNING" in x]
    assert reason in warning


@pytest.mark.xdist_group("built")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            '<a href="second.html#nowhere">there</a>',
            "'second.html#nowhere' leads to no anchor",
        ),
        ('<a href="third.html">there</a>', "'third.html' leads to no file"),
        ('<img src="gone.png" alt="gone">', "'gone.png', which does not exist"),
        ('<img src="second.html" alt="">', "has no alt text"),
        (
            '<script src="https://cdn.example/x.js"></script>',
            "/x.js' from another host",
        ),
    ],
)
def test_the_built_pages_are_refused(fault: str, reason: str, built: Path):
    page = built / "book" / "index.html"
    before = page.read_text(encoding="utf-8")
    after = before.replace("</article>", f"{fault}</article>")
    assert after != before
    page.write_text(after, encoding="utf-8")
    try:
        (found,) = site_faults(built)
    finally:
        page.write_text(before, encoding="utf-8")
    assert reason in found


# The command


def test_the_first_refusal_ends_the_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ran = []

    def refuse() -> None:
        """Refuse."""
        gate.run([sys.executable, "-c", "raise SystemExit(3)"], env={})

    def go_on() -> None:
        """Go on."""
        ran.append("b")

    monkeypatch.setattr(gate, "STAGES", {"a": refuse, "b": go_on})
    assert gate.main(["a", "b"]) == 1
    assert ran == []
    assert "refuses at stage `a`" in capsys.readouterr().err
    assert gate.main(["b"]) == 0
    assert ran == ["b"]


def test_portability_names_the_setting_that_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run_nbval(paths: list[Path], settings: dict[str, str]) -> dict[str, float]:
        if settings.get("ATEN_CPU_CAPABILITY") == "avx2":
            raise gate.Refused("a wrong number")
        return {"lesson.ipynb": 1.5}

    monkeypatch.setattr(gate, "run_nbval", run_nbval)
    with pytest.raises(gate.Refused, match="1 of 6 settings failed"):
        gate.portability()
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in table].count("passed") == 5
    assert "FAILED             ATEN_CPU_CAPABILITY=avx2" in table
