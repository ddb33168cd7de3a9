"""The page on options, as far as it speaks of this book; TRL's part: tests/peers."""

import importlib
import inspect
import re

import pytest
from gate import ROOT
from options_page import NOT_HERE, PAGE, ROWS, of

from rl_notes import (
    advantages,
    divergences,
    objectives,
    policies,
    rollouts,
    trajectories,
    updates,
)
from rl_notes.language import generation, models

MODULES = (
    *(advantages, divergences, generation, models, objectives, policies, rollouts),
    *(trajectories, updates),
)
CODE = re.compile(r"`(\w+)(?:\((\w+)(?:=\w+)?\))?`")
OURS = [row for row in of("here") if CODE.match(row.option)]


def test_no_row_is_missed():
    """Every table has a row of ours and one of TRL, or the page says that it lacks."""
    assert len(ROWS) == len(re.findall(r"^\| (?!in |---)", PAGE, re.MULTILINE)) - 4
    assert {row.where for row in ROWS} == {
        *("here", "TRL", "TRL, RLOO", "TRL, DPO", "TRL, reward"),
        *("verl", "prime-rl", "OpenRLHF"),
    }
    assert len(of("here")) == PAGE.count("| in | option | default |") - 2
    assert ROWS[-1].section == NOT_HERE


def test_the_versions_are_those_of_the_peers():
    pins = (ROOT / "requirements-peers.txt").read_text(encoding="utf-8")
    (version,) = re.findall(r"^trl==(.*)$", pins, re.MULTILINE)
    assert f"| TRL | version {version}." in PAGE


@pytest.mark.parametrize("row", OURS, ids=str)
def test_our_names_and_defaults(row):
    name, argument = CODE.match(row.option).groups()
    (found,) = {id(f): f for m in MODULES if (f := getattr(m, name, None))}.values()
    if argument is None:
        assert row.default == ""
        return
    default = inspect.signature(found).parameters[argument].default
    if default is inspect.Parameter.empty:
        assert row.default == "required"
    else:
        assert row.default == f"`{default}`"


def test_names_in_the_text_exist():
    """`aggregate=...` and `normalise` are said outside the tables."""
    for module, name in [
        ("updates", "grpo_update"),
        ("advantages", "normalise"),
        ("advantages", "has_spread"),
        ("objectives", "token_clip"),
    ]:
        assert f"`{name}" in PAGE
        assert hasattr(importlib.import_module(f"rl_notes.{module}"), name)
    signature = inspect.signature(updates.grpo_update)
    assert signature.parameters["aggregate"].default is objectives.mean_over_sequences
