"""The page of questions says nothing that the cells to which it leads do not print."""

import re
from functools import cache
from typing import Any

import pytest
from gate import ROOT
from notebook_rules import load, output_text, source

BOOK = ROOT / "book"
PAGES = ["questions"]
MOST_WORDS = 99  # about ninety
QUESTION = re.compile(r"^### (.*?)\n\n(.*?)(?=\n\n#|\Z)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")
CELL = re.compile(r"(\w+)\.ipynb#cell-id=([\w-]+)")
CODE = re.compile(r"`[^`]*`")
# A number that is no part of a name, such as k3, pass@8 or 1/L.
NUMBER = re.compile(r"(?<![\w@.])\d+(?:[.,]\d+)*(?!/)")


@cache
def cells(chapter: str) -> dict[str, Any]:
    """The executed cells of a chapter, by their ids."""
    found = load(BOOK / f"{chapter}.ipynb")["cells"]
    return {cell["id"]: cell for cell in found if cell["cell_type"] == "code"}


def printed(cell: dict[str, Any]) -> set[str]:
    """The numbers in what a cell printed, and in what is said of its figures."""
    return numbers("\n".join(map(output_text, cell["outputs"])))


def numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in NUMBER.findall(CODE.sub("", text))}


def answers() -> list[tuple[str, str]]:
    """Every question with its answer, in one line."""
    prose = [
        source(cell)
        for page in PAGES
        for cell in load(BOOK / f"{page}.ipynb")["cells"]
        if cell["cell_type"] == "markdown"
    ]
    return [
        (found[1], " ".join(found[2].split()))
        for text in prose
        for found in QUESTION.finditer(text)
    ]


def sentences(answer: str) -> list[str]:
    return re.split(r"(?<=[.!?)])\s+(?=[A-Z(])", answer)


LINKS = [
    (question, *link) for question, text in answers() for link in LINK.findall(text)
]


def test_there_are_twenty_questions():
    asked = [question.split(".")[0] for question, _ in answers()]
    assert asked == [str(number) for number in range(1, 21)]


@pytest.mark.parametrize(("question", "answer"), answers(), ids=lambda text: text[:30])
def test_every_sentence_of_an_answer_is_a_link(question, answer):
    assert [part for part in sentences(answer) if not LINK.search(part)] == []
    assert len(LINK.sub(r"\1", answer).split()) <= MOST_WORDS


@pytest.mark.parametrize(("question", "words", "target"), LINKS)
def test_a_link_leads_to_a_cell_that_prints_its_numbers(question, words, target):
    found = CELL.fullmatch(target)
    if found is None:  # a section: the build finds it, and it prints nothing
        assert numbers(words) == set()
        return
    chapter, cell = found.groups()
    missing = numbers(words)
    if cell in cells(chapter):
        missing -= printed(cells(chapter)[cell])
    like_it = [id_ for id_, c in cells(chapter).items() if numbers(words) & printed(c)]
    assert cell in cells(chapter), f"it has gone or changed; look at {like_it}"
    assert missing == set(), f"are not printed there; look at {like_it}"


@pytest.mark.parametrize(("question", "answer"), answers(), ids=lambda text: text[:30])
def test_no_number_stands_outside_the_links(question, answer):
    for part in sentences(answer):
        linked = [CELL.fullmatch(target) for _, target in LINK.findall(part)]
        shown = [printed(cells(m[1])[m[2]]) for m in linked if m]
        assert numbers(LINK.sub("", part)) <= set().union(*shown)
