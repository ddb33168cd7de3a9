"""The book shows a notebook as Jupyter and Colab do: one small book, looked at."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gate
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from PIL import Image
from small_book import PIXEL, lesson, make_book, store

TAGGED = r"""## A named equation

$$
\begin{aligned}
J &= V \\
  &= R
\end{aligned}
\tag{two lines}
$$

$$
x \\ y
$$

$$
G_t = r_t
\tag{return}
$$"""
SENTENCE = "The value $V(s)$, the $k$-th of ($a$ and $b$)."
MYST = "# Second\n\n[](index.md) {cite}`ada1843`\n\n```{bibliography}\n```\n"
ENVIRONMENTS = r"""
$$
a \\ b
\tag{page}
$$

\begin{align*}
c &= d \\
e &= f
\end{align*}

$$
E = mc^2
$$ (energy)

See {eq}`energy`.
"""


def encoded(kind: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (200, 30, 90)).save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def drawn(kind: str, content: str, about: dict[str, object]) -> Any:
    data = {kind: content, "text/plain": "a picture"}
    return new_output("display_data", data=data, metadata={kind: about})


def shown() -> NotebookNode:
    """The lesson of the gate's test, with equations and two more pictures."""
    notebook = lesson()
    two = [
        drawn("image/gif", encoded("GIF"), {"alt": 'A robot & its "way".', "width": 9}),
        drawn("image/png", encoded("PNG"), {"alt": "A red dot."}),
    ]
    notebook.cells += [
        new_markdown_cell(TAGGED),
        new_markdown_cell(SENTENCE),
        new_code_cell("1 + 1  # pictures", outputs=two, execution_count=6),
    ]
    return notebook


class Page(HTMLParser):
    """The pictures of a page, its displayed equations, and what cannot be torn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.equations: list[str] = []
        self.kept: list[str] = []
        self._inside: list[list[str]] = []  # the texts that are open
        self._open: list[bool] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        classes = (about.get("class") or "").split()
        if tag == "img" and "_images" in (about.get("src") or ""):
            self.images.append(about)
        if tag in ("div", "span"):
            found = {"math-and-punctuation": self.kept}
            if tag == "div" and "math" in classes:
                found["math"] = self.equations
            target = next((found[name] for name in classes if name in found), None)
            self._open.append(target is not None)
            if target is not None:
                target.append("")
                self._inside.append(target)

    def handle_endtag(self, tag):
        if tag in ("div", "span") and self._open and self._open.pop():
            self._inside.pop()

    def handle_data(self, data):
        for target in self._inside:
            target[-1] += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    root = make_book(tmp_path_factory.mktemp("theme"))
    store(shown(), root / "book" / "lesson.ipynb")
    second = root / "book" / "second.md"
    second.write_text(MYST + ENVIRONMENTS, encoding="utf-8")
    html: Path = gate.build_book(root)
    return {
        name: Page((html / "book" / f"{name}.html").read_text(encoding="utf-8"))
        for name in ("lesson", "second")
    }


pytestmark = pytest.mark.xdist_group("theme")


def test_every_picture_has_the_alt_text_stored_beside_it(pages: dict[str, Page]):
    images = pages["lesson"].images
    assert [image["alt"] for image in images] == [
        "One pixel.",
        'A robot & its "way".',
        "A red dot.",
    ]
    kinds = [re.sub(r".*\.", "", image["src"] or "") for image in images]
    assert kinds == ["png", "gif", "png"]


def test_the_width_of_a_picture_is_kept(pages: dict[str, Page]):
    widths = [
        image.get("width") or image.get("style") for image in pages["lesson"].images
    ]
    assert "9" in (widths[1] or "")


def plain(text: str) -> str:
    """The same equation on one line, without blanks around it."""
    line = re.sub(r"\s+", " ", text.strip())
    return line.replace(r"\[ ", r"\[").replace(r" \]", r"\]")


def test_equations_reach_mathjax_as_they_were_written(pages: dict[str, Page]):
    wanted = [f"\\[{plain(part)}\\]" for part in TAGGED.split("$$")[1::2]]
    first, *others = pages["lesson"].equations
    assert plain(first) == r"\[6 x \tag{product}\]"
    assert [plain(text) for text in others] == wanted


def test_no_tag_stands_inside_a_split(pages: dict[str, Page]):
    text = "\n".join(pages["lesson"].equations + pages["second"].equations)
    assert text.count(r"\tag{") == 4
    assert r"\begin{split}" not in text


def test_numbered_and_amsmath_equations_stay_what_they_are(pages: dict[str, Page]):
    first, aligned, numbered = pages["second"].equations
    assert plain(first) == r"\[a \\ b \tag{page}\]"
    assert plain(aligned) == r"\[\begin{align*} c &= d \\ e &= f \end{align*}\]"
    assert "E = mc^2" in numbered
    assert "(1)" in numbered
    assert numbered.count(r"\[") == 1  # not wrapped twice


def test_a_formula_and_what_touches_it_stay_together(pages: dict[str, Page]):
    kept = pages["lesson"].kept
    assert kept[-4:] == [r"\(V(s)\),", r"\(k\)-th", r"(\(a\)", r"\(b\))."]


def test_the_small_pictures_differ():
    # The alt text is found by the picture's content: two equal ones would share it.
    assert len({PIXEL, encoded("GIF"), encoded("PNG")}) == 3
