"""The stored results: whole, made by the experiments that are there, and honest."""

import importlib
import json
import sys
from functools import partial
from importlib.resources import files

import pytest
from gate import ROOT

from rl_notes import results
from rl_notes.language.arithmetic import is_held_out, numbers

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


def test_ppo_has_five_seeds_of_every_arm_from_one_start():
    stored = results.load("ppo")
    arms = {name: stored[name] for name in stored["settings"]}
    robots = {name: stored["maze"][name] for name in stored["maze_settings"]}
    first = stored["clipped"][0]["curve"][0]
    for runs in [*arms.values(), *robots.values()]:
        assert seeds_of(runs) == list(range(5))
        assert len({run["curve"][-1] for run in map(ending, runs)}) > 1
    for run in [run for runs in arms.values() for run in runs]:
        assert run["curve"][0] == first
        assert len(run["updates"]) == run["curve"][-1]["updates"]
    # Whatever is not clipped is never counted as clipped, and the other way round.
    for name, runs in arms.items():
        fractions = [u["clip_fraction"] for run in runs for u in run["updates"]]
        assert all(0 <= fraction <= 1 for fraction in fractions)
        assert any(fractions) == (stored["settings"][name]["clip_low"] < 1)


def test_reward_model_has_five_seeds_of_every_annotator_from_one_start():
    stored = results.load("reward_model")
    names = {"no_weakness", "likes_long", "likes_short", "likes_round", "head"}
    assert names < stored.keys()
    for runs in [stored[name] for name in names]:
        assert seeds_of(runs) == list(range(5))
        assert len({run["curve"][-1]["work_gap"] for run in runs}) > 1
        for run in runs:
            before, *after = run["curve"]
            # A head of zeros: every score is 0, and every comparison a coin.
            assert [before[key] for key in before] == [0, 0.5, 0.5, 0.5, 0, 0, 0]
            assert all(point["work_gap"] != 0 for point in after)


def test_rlhf_has_five_seeds_of_every_price_from_one_start():
    stored = results.load("rlhf")
    runs = stored["runs"]
    assert seeds_of(stored["compared"]) == list(range(5))
    assert {run["beta"] for run in stored["compared"]} == {0}
    prices = sorted({run["beta"] for run in runs})
    assert prices[0] == 0
    assert len(prices) >= 3
    for price in prices:
        same = [run for run in runs if run["beta"] == price]
        assert seeds_of(same) == list(range(5))
        assert len({run["curve"][-1]["proxy"] for run in same}) > 1
    for run in runs + stored["compared"]:
        assert run["curve"][0] == runs[0]["curve"][0]
        assert run["curve"][0]["kl"] == 0
        assert all(point["kl"] > 0 for point in run["curve"][1:])
        asked = [said["question"] for said in run["samples"][0]["answers"]]
        assert all(is_held_out(*numbers(question)) for question in asked)


def ending(run):
    """The run with the last point of its curve as one number."""
    last = run["curve"][-1]
    return {"curve": [last["sampled"] if isinstance(last, dict) else last]}


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
        monkeypatch.setattr(module, "measure", few, raising=False)
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


def test_the_experiment_with_ppo_runs(experiment):
    made = experiment(
        "ppo",
        SEEDS=range(1),
        ANSWERS=8,
        SIZE=2,
        WARM_UP=1,
        MEASURED_AT=(0, 1),
        MAZE_UPDATES=1,
    )
    stored = results.load("ppo")
    assert made.keys() == stored.keys()
    assert made["settings"] == stored["settings"]
    assert made["maze_settings"] == stored["maze_settings"]
    for name in stored["settings"]:
        assert made[name][0].keys() == stored[name][0].keys()
        assert (
            made[name][0]["updates"][0].keys() == stored[name][0]["updates"][0].keys()
        )
    assert made["maze"]["clipped"][0].keys() == stored["maze"]["clipped"][0].keys()
    # All robots of a seed begin alike, and what an update did depends on the arm.
    robots = [made["maze"][name][0] for name in stored["maze_settings"]]
    assert len({robot["curve"][0] for robot in robots}) == 1
    assert len({robot["curve"][1] for robot in robots}) == 3


def test_the_experiment_with_reward_model_runs(experiment):
    made = experiment(
        "reward_model",
        SEEDS=range(1),
        ASKED=40,
        MEASURED_AT=(0, 8, 16),
        EXAM=60,
        CHANGED=6,
        BATCH=4,
        WEAKNESS=1.0,
    )
    stored = results.load("reward_model")
    assert made.keys() == stored.keys()
    ends = set()
    for name in ("no_weakness", "likes_long", "likes_short", "likes_round", "head"):
        curve, theirs = made[name][0]["curve"], stored[name][0]["curve"]
        assert [point["pairs"] for point in curve] == [0, 8, 16]
        assert curve[0].keys() == theirs[0].keys()
        assert curve[0]["work_gap"] == 0 != curve[1]["work_gap"]
        ends.add(curve[-1]["work_gap"])
    # What an annotator likes, and what may learn, changes what is learnt.
    assert len(ends) == 5


def test_the_experiment_with_rlhf_runs(experiment):
    made = experiment(
        "rlhf",
        SEEDS=range(1),
        QUESTIONS=4,
        SIZE=2,
        UPDATES=2,
        MEASURED_EVERY=2,
        WARM_UP=1,
        judge=partial(importlib.import_module("rlhf").judge, questions=10),
    )
    stored = results.load("rlhf")
    assert made.keys() == stored.keys()
    assert made["settings"].keys() == stored["settings"].keys()
    assert [run["beta"] for run in made["runs"]] == sorted(
        {run["beta"] for run in stored["runs"]}
    )
    for mine, theirs in zip(made["runs"], stored["runs"], strict=False):
        assert mine.keys() == theirs.keys()
        assert mine["curve"][0].keys() == theirs["curve"][0].keys()
        assert mine["samples"][0]["answers"][0].keys() == (
            theirs["samples"][0]["answers"][0].keys()
        )
    assert len(made["compared"]) == 1
    # What a nat costs does not change the first answers, but it changes the policy.
    ends = [run["curve"][-1] for run in made["runs"]]
    assert ends[0] != ends[-1]
