"""The repository can move: `make address` leaves nothing of the old address."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from address import ROOT, address_in, move

# In two parts, so that this file, which is among those that move, does not name it.
NEW = "https://example.org/somebody" + "/their-notes"


@pytest.fixture
def copy(tmp_path):
    """The repository's files as git knows them, in a repository of their own."""
    known = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True
    )
    for name in filter(None, known.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def texts(folder):
    """Every text file of the folder, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".git" not in path.relative_to(folder).parts:
            try:
                found[str(path.relative_to(folder))] = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
    return found


def test_nothing_is_left_of_the_old_address(copy):
    old, before = address_in(copy), texts(copy)
    owner_and_name = old.removeprefix("https://github.com/")
    changed = move(copy, NEW)
    after = texts(copy)
    left = [name for name, text in after.items() if owner_and_name in text]
    assert left == []
    assert address_in(copy) == NEW
    notebooks = [name for name in changed if name.endswith(".ipynb")]
    assert len(notebooks) == len(list(Path(ROOT, "book").glob("*.ipynb")))
    assert {"README.md", "CITATION.cff", "pyproject.toml", "_config.yml"} <= {*changed}
    # And nothing else has changed.
    back = {name: text.replace(NEW, old) for name, text in after.items()}
    assert back == before


def test_there_and_back_again(copy):
    old, before = address_in(copy), texts(copy)
    move(copy, NEW + ".git")
    move(copy, old + "/")
    assert texts(copy) == before


def test_an_address_that_only_begins_alike_stays(copy):
    old = address_in(copy)
    page = copy / "README.md"
    page.write_text(f"{old}-extra {old}.git {old}/blob {old}#readme ({old}).", "utf-8")
    move(copy, NEW)
    expected = f"{old}-extra {NEW}.git {NEW}/blob {NEW}#readme ({NEW})."
    assert page.read_text("utf-8") == expected


@pytest.mark.parametrize("wrong", ["", "github.com/a/b", "https://github.com/a", "x"])
def test_what_is_no_address_is_refused(copy, wrong):
    before = texts(copy)
    with pytest.raises(SystemExit, match=re.escape("make address NEW=https://")):
        move(copy, wrong)
    assert texts(copy) == before
