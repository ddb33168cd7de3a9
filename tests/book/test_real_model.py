"""The chapter on a real model says and does what its experiment does."""

import difflib
import re
from functools import partial

import nbformat
import pytest
import real_model as tool
import torch
from gate import ROOT

from experiments import real_model as experiment
from rl_notes import results
from rl_notes.language.arithmetic import is_held_out

BOOK = ROOT / "book"


def code_cells(name):
    notebook = nbformat.read(BOOK / f"{name}.ipynb", as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def lines_of(name, function):
    """The lines of a function of a chapter, without the spaces before them."""
    (cell,) = [source for source in code_cells(name) if f"def {function}(" in source]
    body = cell.split(f"def {function}(")[1].split("\ndef ")[0]
    return [line.strip() for line in f"def {function}({body}".splitlines() if line]


def test_the_diff_of_the_loops_is_their_diff():
    notebook = nbformat.read(BOOK / "real_model.ipynb", as_version=4)
    (text,) = [cell.source for cell in notebook.cells if "```diff" in cell.source]
    block = re.search(r"```diff\n(.*?)```", text, re.DOTALL)[1]
    shown = [line[0] + line[1:].strip() for line in block.splitlines()]
    loops = [lines_of(name, "grpo") for name in ("grpo_family", "real_model")]
    changed = [line[0] + line[2:] for line in difflib.ndiff(*loops) if line[0] in "-+"]
    assert [line for line in shown if line[0] in "-+"] == changed
    assert 4 <= len(changed) <= 14


@pytest.fixture(scope="module")
def chapter():
    """The functions of the chapter that need no model."""
    names = {"torch": torch, "is_held_out": is_held_out}
    for function in ("draw_pairs", "is_right"):
        (cell,) = [c for c in code_cells("real_model") if f"def {function}(" in c]
        exec(cell.split("\n\n\nfor ")[0], names)
    return names


@pytest.mark.parametrize("held_out", [False, True])
def test_the_chapter_draws_the_pairs_of_the_experiment(chapter, held_out):
    here, there = (torch.Generator().manual_seed(3) for _ in range(2))
    drawn = chapter["draw_pairs"](40, here, 10, 99, held_out)
    assert drawn == experiment.pairs((10, 99), 40, held_out=held_out, generator=there)
    assert all(is_held_out(b, a) == held_out for a, b in drawn)
    assert len(set(drawn)) == 40


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("22", True),
        ("16 + 6 = 22", True),
        ("The sum is 1,022, less 1,000: 22.", True),
        ("16 + 6 = 220", False),
        ("22 or 23", False),
        ("16 + 6 =", False),
        ("twenty-two", False),
        ("", False),
    ],
)
def test_the_rule_reads_the_last_number(chapter, text, right):
    assert experiment.is_right((16, 6), text) == right
    assert chapter["is_right"]((16, 6), text) == right


@pytest.mark.parametrize("name", experiment.EXAMS)
def test_what_is_held_out_has_nothing_else_in_common(name):
    """Sums end in every digit: a hash holds pairs out, and not what they add up to."""
    (low, high), held_out = experiment.EXAMS[name]
    asked = experiment.exam(name)
    assert asked == experiment.exam(name)
    assert len(set(asked)) == experiment.ASKED
    assert all(low <= min(pair) <= max(pair) <= high for pair in asked)
    assert all(is_held_out(*pair) == held_out for pair in asked)
    assert {sum(pair) % 10 for pair in asked} == set(range(10))


def test_the_coin_knows_nothing_of_the_answers():
    draw = partial(torch.Generator().manual_seed, 5)
    pairs = [(1, 2)] * 200
    first = experiment.by_coin(pairs, ["3"] * 200, draw())
    assert first == experiment.by_coin(pairs, ["4"] * 200, draw())
    assert 60 < sum(first) < 140


def test_the_stored_runs_are_whole():
    stored = results.load("real_model")
    for kind in ("rule", "coin", "lora", "products"):
        runs = [stored[f"{kind}-{seed}"] for seed in experiment.SEEDS]
        assert all(len(run["curve"]) == experiment.UPDATES for run in runs)
        assert len({str(run["curve"]) for run in runs}) == len(runs)
    tuned = [stored[f"tuned-{seed}"] for seed in experiment.SEEDS]
    right = [
        128 * sum(point["score"] for point in stored[f"rule-{seed}"]["curve"])
        for seed in experiment.SEEDS
    ]
    # Fine-tuning saw as many right answers as the rule's runs had, in the mean.
    for run in tuned:
        assert run["seen"] == pytest.approx(sum(right) / 3, abs=1)


UPDATE = " 1  right 0.06  KL 0.0021  entropy 1.33\n"


def printed(text):
    cell = nbformat.v4.new_code_cell()
    cell.outputs = [nbformat.v4.new_output("stream", text=text)]
    return tool.printed(nbformat.v4.new_notebook(cells=[cell]))


def test_make_real_model_notices_a_run_that_went_another_way():
    book = printed(UPDATE + UPDATE.replace(" 1 ", " 2 ") + UPDATE.replace(" 1 ", " 3 "))
    assert set(book) == {1, 2, 3}
    assert tool.far(book, book) == []
    assert tool.far(book | {2: (0.06, 0.0021, 1.60)}, book)[0].startswith("update 2")
    assert tool.far({1: book[1]}, book) == [
        "update 2: nothing is printed",
        "update 3: nothing is printed",
    ]


def test_make_real_model_finds_three_updates_in_the_chapter(tmp_path):
    (cell,) = [
        cell
        for cell in nbformat.read(tool.copied(tmp_path), as_version=4).cells
        if tool.LIVE in cell.source
    ]
    assert tool.UPDATES not in cell.source
    stored = tool.printed(nbformat.read(tool.CHAPTER, as_version=4))
    assert {1, 2, 3} <= set(stored)
