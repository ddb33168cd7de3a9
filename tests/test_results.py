"""The stored results: whole, made by the experiments that are there, and honest."""

import importlib
import json
import sys
from functools import partial
from importlib.resources import files

import pytest
from gate import ROOT

from rl_notes import results

EXPERIMENTS = ROOT / "experiments"
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem != "answers")


def test_every_experiment_has_its_results_and_the_other_way_round():
    stored = {path.stem for path in (ROOT / "rl_notes/results").glob("*.json")}
    assert stored == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_results_travel_with_the_package_and_say_how_they_were_made(name):
    assert (files("rl_notes.results") / f"{name}.json").is_file()
    about = results.load(name)["about"]
    assert about["command"].endswith(f"experiments/{name}.py")
    assert about["cpu_seconds"] > 60  # shorter runs belong into the page itself


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"named 'nothing'.*reinforce"):
        results.load("nothing")


def seeds_of(runs):
    return [run["seed"] for run in runs]


def test_reinforce_has_five_seeds_of_everything_from_one_start():
    stored = results.load("reinforce")
    rule = stored["rule"]
    assert seeds_of(rule) == seeds_of(stored["random"]) == list(range(5))
    assert all(seeds_of(runs) == list(range(5)) for runs in stored["more_sft"].values())
    # All runs begin with the shipped model, measured on the same questions.
    assert all(run["curve"][0] == rule[0]["curve"][0] for run in rule)
    # And different draws lead to different ends.
    assert len({run["curve"][-1]["sampled"] for run in rule}) > 1


def test_trpo_has_five_seeds_of_both_settings_inside_their_radius():
    stored = results.load("trpo")
    assert seeds_of(stored["promises"]) == list(range(5))
    for name, setting in stored["settings"].items():
        assert seeds_of(stored[name]) == list(range(5))
        updates = [update for run in stored[name] for update in run["updates"]]
        assert all(0 <= u["kl_mean"] <= setting["max_kl"] for u in updates)
        assert any(u["accepted"] for u in updates)


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """The experiment's modules, made small, writing to another folder."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    answers = importlib.import_module("answers")
    monkeypatch.setattr(answers, "FOLDER", tmp_path)

    def small(name, **constants):
        module = importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        few = partial(answers.measure, questions=6, size=8)
        monkeypatch.setattr(module, "measure", few)
        module.main()
        return json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))

    yield small
    sys.modules.pop("answers")


def test_the_experiment_with_reinforce_runs(experiment):
    made = experiment(
        "reinforce",
        SEEDS=range(2),
        GROUPS=4,
        SIZE=2,
        MEASURED_AT=(0, 2),
        SFT_LEARNING_RATES=(1e-4,),
    )
    stored = results.load("reinforce")
    assert made.keys() == stored.keys()
    assert made["rule"][0].keys() == stored["rule"][0].keys()
    assert [point["updates"] for point in made["rule"][1]["curve"]] == [0, 2]
    assert len(made["rule"][0]["kl"]) == 2
    assert all(moved > 0 for moved in made["rule"][0]["kl"])


def test_the_experiment_with_trpo_runs(experiment):
    small = {"groups": 4, "size": 2, "max_kl": 0.003, "damping": 1.0}
    made = experiment(
        "trpo",
        SEEDS=range(1),
        MEASURED_AT=(0, 1),
        CAREFUL={**small, "rows": None},
        EAGER={**small, "rows": 3},
        DAMPINGS=(1.0,),
        BATCHES=(4,),
        FRESH=4,
    )
    stored = results.load("trpo")
    assert made.keys() == stored.keys()
    for name in ("careful", "eager"):
        assert made[name][0].keys() == stored[name][0].keys()
        assert made[name][0]["curve"][0].keys() == stored[name][0]["curve"][0].keys()
    assert made["promises"][0]["steps"][0].keys() == (
        stored["promises"][0]["steps"][0].keys()
    )
