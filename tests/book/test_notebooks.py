"""Every notebook of the book keeps the rules of notebook_rules.py."""

from pathlib import Path

import pytest
from gate import book_notebooks
from notebook_rules import book_faults, notebook_faults


def test_the_book_has_notebooks():
    assert book_notebooks()


@pytest.mark.parametrize("path", book_notebooks(), ids=lambda path: path.name)
def test_notebook_keeps_the_rules(path: Path):
    assert notebook_faults(path) == []


def test_the_notebooks_fit_together():
    assert book_faults(book_notebooks()) == []
