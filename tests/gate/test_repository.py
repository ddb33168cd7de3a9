"""What must agree across files: the address, the pins, the form of text files."""

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gate import ROOT, book_notebooks
from notebook_rules import load, setup_cell
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rl_notes

PLAIN = {".py", ".md", ".yml", ".toml", ".txt", ".cff", ".bib", ".css", ".js", ".mjs"}
TEXT = PLAIN | {".ipynb", ".cfg", ".svg", ".html", ".json"}
NAMED = {"Makefile", "LICENSE", "LICENSE-TEXT", "run", ".gitignore", ".gitattributes"}
SKIPPED = {".git", "_build", "build", "dist", "node_modules", "mathjax", "__pycache__"}
KEPT = {".ci", ".github"}
DEPENDENCIES = {
    *("numpy", "torch", "gymnasium", "matplotlib"),
    *("transformers", "tokenizers", "jaxtyping", "tqdm", "safetensors"),
    *("pillow", "cycler", "ipython"),
}
ADDRESS = re.compile(
    r"(?:github\.com|githubusercontent\.com|google\.com/github)/([\w.-]+)/([\w.-]*\w)"
)


def text_files() -> Iterator[Path]:
    """Walk the repository's own text files; environments and builds are skipped."""
    for folder, inside, names in os.walk(ROOT):
        inside[:] = [
            name
            for name in inside
            if name not in SKIPPED
            and (not name.startswith(".") or name in KEPT)
            and not (Path(folder, name) / "pyvenv.cfg").exists()
        ]
        for name in names:
            path = Path(folder, name)
            if path.suffix in TEXT or name in NAMED:
                yield path


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def config() -> dict[str, Any]:
    return dict(yaml.safe_load(read("_config.yml")))


def pins() -> dict[str, str]:
    """Return the exact version of every package that `make test` installs."""
    lines = [*read("requirements.txt").splitlines()]
    lines.remove("-r requirements-book.txt")
    lines += read("requirements-book.txt").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    found: dict[str, str] = {}
    for line in wanted:
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
        assert match, f"{line!r} is not an exact pin: write name==version"
        name = str(canonicalize_name(match[1]))
        assert name not in found, f"{name} is pinned twice"
        found[name] = match[2]
    return found


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))


# The address of the repository


def test_other_files_name_the_same_repository():
    address = config()["repository"]["url"]
    match = ADDRESS.search(address)
    assert match and address == f"https://{match.group()}"
    ours = match.groups()
    names = {ours[1], project()["project"]["name"]}
    wrong = [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in text_files()
        for found in ADDRESS.finditer(path.read_text(encoding="utf-8"))
        if (found[1] == ours[0] or found[2].removesuffix(".git") in names)
        and (found[1], found[2].removesuffix(".git")) != ours
    ]
    assert not wrong, f"_config.yml says {address}"


@pytest.mark.parametrize("name", ["README.md", "pyproject.toml", "CITATION.cff"])
def test_the_address_stands_where_readers_look(name: str):
    assert config()["repository"]["url"] in read(name)


@pytest.mark.parametrize("path", book_notebooks(), ids=lambda path: path.name)
def test_the_set_up_cell_installs_from_the_address(path: Path):
    assert f"git+{config()['repository']['url']}" in setup_cell(load(path))


# Text files


def test_text_files_are_utf8_with_unix_lines():
    names = sorted(text_files())
    files = [path for path in names if path.suffix in PLAIN or path.name in NAMED]
    assert len(files) > len(NAMED)
    for path in files:
        data = path.read_bytes()
        data.decode("utf-8")
        assert b"\r" not in data, f"{path}: write Unix line ends"
        assert not data or data.endswith(b"\n"), f"{path}: end it with a line end"


def test_no_file_names_this_machine_or_a_registry():
    hosts = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org"]
    folders = r"(?<![\w.-])/(?:work|root)/"
    pattern = re.compile("|".join([folders, *map(re.escape, hosts)]))
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in text_files()
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_yaml_files_can_be_read():
    files = [path for path in text_files() if path.suffix in (".yml", ".cff")]
    assert {path.name for path in files} >= {"ci.yml", "pages.yml", "CITATION.cff"}
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_citation_names_what_is_needed():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == config()["title"] == "RL Notes"
    assert citation["authors"] == [{"name": config()["author"]}]
    assert citation["repository-code"] == config()["repository"]["url"]
    assert citation["version"] == rl_notes.__version__
    assert citation["message"] and citation["license"]


# Packages


def test_the_package_asks_for_little_and_loosely():
    wanted = [Requirement(line) for line in project()["project"]["dependencies"]]
    assert {item.name for item in wanted} == DEPENDENCIES
    for item in wanted:
        assert [bound.operator for bound in item.specifier] == [">="], item


def test_the_pins_satisfy_the_package():
    exact = pins()
    build = project()["build-system"]["requires"]
    for line in [*project()["project"]["dependencies"], *build]:
        item = Requirement(line)
        assert item.name in exact, f"pin {item.name} in requirements.txt"
        pin = exact[item.name]
        assert pin in item.specifier, f"pyproject.toml wants {item}, the pin is {pin}"


def test_a_reader_of_the_book_waits_for_no_torch():
    book = read("requirements-book.txt")
    assert not re.search(r"^(torch|numpy|transformers|gymnasium)\b", book, re.MULTILINE)


@pytest.mark.xdist_group("repository")
def test_what_belongs_together_runs_in_one_process(request: pytest.FixtureRequest):
    # pytest 9.2 with pytest-xdist 3.8 forgets the groups without a word.
    if request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@repository")
