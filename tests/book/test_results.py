"""The stored results: whole, made by the experiments that are there, and honest."""

import importlib
import json
import statistics
from functools import partial
from importlib.resources import files

import pytest
from gate import ROOT

from experiments import diagnosis
from experiments.answers import measure
from rl_notes import results
from rl_notes.language import curriculum
from rl_notes.language.arithmetic import is_held_out, numbers

EXPERIMENTS = ROOT / "experiments"
NAMES = sorted(
    {path.stem for path in EXPERIMENTS.glob("*.py")} - {"__init__", "answers"}
)


def test_every_experiment_has_its_results_and_the_other_way_round():
    stored = {path.stem for path in (ROOT / "rl_notes/results").glob("*.json")}
    assert stored == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_results_travel_with_the_package_and_say_how_they_were_made(name):
    assert (files("rl_notes.results") / f"{name}.json").is_file()
    about = results.load(name)["about"]
    assert about["command"].endswith(f"python -m experiments.{name}")
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
    # Each dial is the eager setting but for one thing that is as in the careful one.
    careful, eager = stored["settings"]["careful"], stored["settings"]["eager"]
    for name, setting in stored["dial_settings"].items():
        assert seeds_of(stored["dials"][name]) == list(range(5))
        other = {key for key in eager if setting[key] != eager[key]}
        assert other in ({"max_kl"}, {"rows"}, {"damping"}, {"groups", "size"})
        assert all(setting[key] == careful[key] for key in other)


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


def test_grpo_has_five_robots_of_both_groupings_and_five_critics():
    stored = results.load("grpo")
    arms = stored["maze"].values()
    assert all(seeds_of(robots) == list(range(5)) for robots in arms)
    # The robots of a seed begin alike, and the groups make the difference.
    for grouped, mixed in zip(*arms, strict=True):
        assert grouped["curve"][0] == mixed["curve"][0]
        assert grouped["curve"][-1] > mixed["curve"][-1]
    critics = stored["critics"]
    assert seeds_of(critics) == list(range(5))
    assert all(
        0 < point["error"] < 2 * stored["spread_of_values"]
        for critic in critics
        for point in critic["errors"]
    )
    assert len({critic["errors"][-1]["error"] for critic in critics}) > 1


def test_grpo_family_has_five_seeds_of_every_variant_at_equal_cost():
    stored = results.load("grpo_family")
    settings = stored["settings"]
    names = [name for name in stored if isinstance(stored[name], list)]
    assert len(names) == 7
    sampled = settings["questions"] * settings["size"]
    for runs in [stored[name] for name in names]:
        assert seeds_of(runs) == list(range(5))
        assert len({run["curve"][-1]["sampled"] for run in runs}) > 1
    budget = stored["grpo"][0]["curve"][-1]["answers"]
    for name, run in [(key, run) for key in names for run in stored[key]]:
        answers = [update["answers"] for update in run["updates"]]
        assert answers[-1] == run["curve"][-1]["answers"] == budget
        assert answers == sorted(set(answers))
        assert (len(answers) < budget / sampled) == (name == "dapo")
        assert run["curve"][0] == {"answers": 0, **stored["before"]}


def test_off_policy_has_five_seeds_of_every_arm_from_one_start():
    stored = results.load("off_policy")
    names = {name for name in stored if isinstance(stored[name], list)}
    assert {"delay_0", "delay_8_ignored", "delay_8_truncated", "dppo"} < names
    for name in names:
        assert seeds_of(stored[name]) == list(range(5))
    for name in names - {"dissected"}:
        assert len({run["curve"][-1]["sampled"] for run in stored[name]}) > 1
        for run in stored[name]:
            assert len(run["updates"]) == stored["settings"]["updates"]
            assert run["curve"][0] == {"updates": 0, **stored["before"]}
            # The first copy is the learner, unless it was rounded.
            is_rounded = name.startswith(("int4", "bfloat16"))
            assert (abs(run["updates"][0]["away"]) < 1e-6) == (not is_rounded)
    # Without a delay nothing is away from anything, at any time.
    on_policy = [u["away"] for run in stored["delay_0"] for u in run["updates"]]
    assert max(map(abs, on_policy)) < 1e-6
    # The gone are few, and what is found without them is another direction.
    for seed in stored["dissected"]:
        assert 0 < seed["gone"] < 0.01
        assert seed["cosine"]["only_gone"] < seed["cosine"]["without_gone"]
        assert seed["cosine"]["without_others"] < seed["cosine"]["without_gone"]


def test_thinking_has_five_seeds_of_everything_from_one_start():
    stored = results.load("thinking")
    names = {name for name in stored if isinstance(stored[name], list)} - {"lessons"}
    faster = {"rate_3e-4", "rate_1e-3"}
    assert names == {"grpo", "random", "right_each_round", "right_once", *faster}
    first = stored["grpo"][0]["curve"][0]
    assert first["kl"] == 0
    assert all(is_held_out(*numbers(question)) for question in first["said"])
    for name in names:
        assert seeds_of(stored[name]) == list(range(5))
        assert all(run["curve"][0] == first for run in stored[name])
        last = stored[name][0]["curve"][-1]["updates"]
        updates = [len(run["updates"]) for run in stored[name]]
        assert updates == [{"right_once": 0}.get(name, last or updates[0])] * 5
    for name in names - faster:
        ends = [run["curve"][-1] for run in stored[name]]
        assert all(end["kl"] > 0 for end in ends)
        assert len({end["sampled"] for end in ends}) > 1
    # The last model is right in more than 95 % of single answers (test_checkpoints).
    assert first["pass@8"] < 0.95
    # The arms of a seed begin with the same answers, and larger steps go farther.
    for runs in zip(*(stored[name] for name in ["grpo", *sorted(faster)]), strict=True):
        slow, *others = [run["updates"][0] for run in runs]
        assert all(other["right"] == slow["right"] for other in others)
        assert all(other["kl_mean"] > slow["kl_mean"] for other in others)


def test_diagnosis_breaks_one_thing_at_a_time_in_five_seeds():
    stored = results.load("diagnosis")
    for name, arm in diagnosis.ARMS.items():
        healthy = diagnosis.PRICED if arm.k1_in_loss else diagnosis.HEALTHY
        mine, theirs = vars(arm), vars(healthy)
        changed = [field for field in mine if mine[field] != theirs[field]]
        assert len(changed) == (name != "healthy")
        runs = stored[name]
        assert seeds_of(runs) == list(range(5))
        assert all(len(run["updates"]) == diagnosis.UPDATES for run in runs)
        if name == "temperature":  # the model stays what it was, where all is silent
            for run in runs:
                silent = all(update["silent"] == 1 for update in run["updates"])
                assert silent == (run["end"] == stored["before"])
        elif name != "truncated":  # the runs of a seed begin with the same answers
            for run, other in zip(runs, stored["healthy"], strict=True):
                assert run["updates"][0]["score"] == other["updates"][0]["score"]


def test_the_second_lesson_is_a_plateau_and_then_a_rise():
    """As its figure in the book shows, and its words say."""
    stored = results.load("thinking")["lessons"]
    assert [len(lesson) for lesson in stored] == [*curriculum.UPDATES]
    # What the first lesson left was measured on a model that was trained again.
    again = results.load("thinking")["first_lesson"]["right_in_the_last_ten_updates"]
    assert statistics.mean(again) == pytest.approx(
        statistics.mean(stored[0][-10:]), abs=0.02
    )
    tens = [statistics.mean(stored[1][k : k + 10]) for k in range(0, 220, 10)]
    assert all(0.24 < mean < 0.32 for mean in tens[:12])
    assert 0.3 < tens[13] < 0.4
    assert all(mean > 0.7 for mean in tens[-4:])


def test_side_by_side_has_five_seeds_of_every_algorithm_and_one_budget():
    stored = results.load("side_by_side")
    settings = stored["settings"]
    for world in ("maze", "language"):
        assert stored[world].keys() == settings[world].keys()
        assert all(seeds_of(runs) == list(range(5)) for runs in stored[world].values())
        moved = stored[world]["trpo"]
        if world == "language":
            moved = [{"kl_mean": [u["kl_mean"] for u in r["updates"]]} for r in moved]
        radius = settings[world]["trpo"]["max_kl"]
        assert all(0 <= kl <= radius for run in moved for kl in run["kl_mean"])
    # Robots of a seed begin alike, and go on until the budget is spent.
    for robots in zip(*stored["maze"].values(), strict=True):
        assert len({robot["curve"][0]["earns"] for robot in robots}) == 1
        assert len({robot["curve"][-1]["seconds"] for robot in robots}) == 4
        assert all(robot["curve"][-1]["steps"] >= settings["steps"] for robot in robots)
    budget = stored["language"]["grpo"][0]["curve"][-1]["answers"]
    for name, run in [
        (k, run) for k, runs in stored["language"].items() for run in runs
    ]:
        read = settings["warm_up"] if name in ("trpo", "ppo") else 0
        assert run["curve"][0] == {"answers": 0, "seconds": 0.0, **stored["before"]}
        assert run["curve"][-1]["answers"] == run["updates"][-1]["answers"] == budget
        assert len(run["updates"]) == (budget - read) / settings["answers"]
    for far in stored["horizon"]:
        assert seeds_of(far["ppo"]) == seeds_of(far["grpo"]) == list(range(5))
        ends = [run["curve"][-1] for name in ("ppo", "grpo") for run in far[name]]
        assert all(end["steps"] >= far["steps"] for end in ends)
        assert all(end["earns"] <= far["best"] for end in ends)
    ways = [far["distance"] for far in stored["horizon"]]
    assert ways == sorted(set(ways))


def ending(run):
    """The run with the last point of its curve as one number."""
    last = run["curve"][-1]
    return {"curve": [last["sampled"] if isinstance(last, dict) else last]}


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """The experiment's modules, made small, writing to another folder."""
    monkeypatch.setattr("experiments.answers.FOLDER", tmp_path)

    def small(name, **constants):
        module = importlib.import_module(f"experiments.{name}")
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        few = partial(measure, questions=6, size=8)
        monkeypatch.setattr(module, "measure", few, raising=False)
        module.main()
        return json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))

    return small


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
        DIALS={"rows": {**small, "rows": None}},
        DAMPINGS=(1.0,),
        BATCHES=(4,),
        FRESH=4,
        EXAM=20,
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


def test_the_experiment_with_grpo_runs(experiment):
    made = experiment(
        "grpo",
        SEEDS=range(1),
        STARTS=6,
        SIZE=4,
        UPDATES=1,
        EXAM=4,
        TRIES=8,
        READ=(8, 16),
        BATCH=8,
    )
    stored = results.load("grpo")
    assert made.keys() == stored.keys()
    grouped, mixed = (robots[0] for robots in made["maze"].values())
    assert grouped.keys() == stored["maze"]["grouped"][0].keys()
    assert grouped["curve"][0] == mixed["curve"][0]
    assert grouped["curve"][1] != mixed["curve"][1]
    errors = made["critics"][0]["errors"]
    assert [point["answers"] for point in errors] == [8, 16]
    assert errors[0].keys() == stored["critics"][0]["errors"][0].keys()
    # A critic that has read nothing says 0 everywhere: it has learnt something.
    assert errors[0]["error"] != errors[1]["error"]


def test_the_experiment_with_grpo_family_runs(experiment, tmp_path):
    small = {
        "SEEDS": range(1),
        "QUESTIONS": 8,
        "SIZE": 4,
        "ASKED_AT_A_TIME": 4,
        "MEASURED_AT": (32, 96),
        "EXAM": 6,
    }
    made = experiment("grpo_family", **small)
    stored = results.load("grpo_family")
    assert made.keys() == stored.keys()
    assert made["settings"].keys() == stored["settings"].keys()
    names = [name for name in stored if isinstance(stored[name], list)]
    for mine, theirs in [(made[name][0], stored[name][0]) for name in names]:
        assert mine.keys() == theirs.keys()
        assert mine["updates"][0].keys() == theirs["updates"][0].keys()
        assert mine["curve"][-1].keys() == theirs["curve"][-1].keys()
        assert mine["updates"][-1]["answers"] == mine["curve"][-1]["answers"] == 96
    # The variants begin with the same answers, and then go their own ways.
    firsts = {made[name][0]["updates"][0]["score"] for name in names if name != "dapo"}
    assert len(firsts) == 1
    assert len({made[name][0]["updates"][0]["kl_mean"] for name in names}) == 7
    # What is stored is kept, and only what is missing is run.
    marked = [{"seed": 0, "kept": True}]
    lacking = {**made, "grpo": marked, "cispo": []}
    kept = tmp_path / "grpo_family.json"
    kept.write_text(json.dumps(lacking), encoding="utf-8")
    again = experiment("grpo_family", **small)
    assert again["grpo"] == marked
    assert again["cispo"][0]["updates"] == made["cispo"][0]["updates"]


def test_the_experiment_with_off_policy_runs(experiment, tmp_path):
    small = {"SEEDS": range(1), "QUESTIONS": 8, "SIZE": 4, "UPDATES": 2, "DISSECTED": 8}
    made = experiment("off_policy", **small, LATE=2)
    stored = results.load("off_policy")
    assert made.keys() == stored.keys()
    assert made["settings"].keys() == stored["settings"].keys()
    arms = {name for name in stored if isinstance(stored[name], list)} - {"dissected"}
    for mine, theirs in [(made[name][0], stored[name][0]) for name in sorted(arms)]:
        assert mine.keys() == theirs.keys()
        assert len(mine["updates"]) == 2
        assert mine["updates"][0].keys() == theirs["updates"][0].keys()
        assert mine["curve"][-1].keys() == theirs["curve"][-1].keys()
    assert made["dissected"][0].keys() == stored["dissected"][0].keys()
    # A copy that is one update late answers the second batch as the first model.
    late, own = made["delay_1_ignored"][0], made["delay_0"][0]
    assert late["updates"][0] == own["updates"][0]
    assert late["updates"][1]["away"] != own["updates"][1]["away"]
    assert late["updates"][1] == made["delay_8_ignored"][0]["updates"][1]
    # What is stored is kept, and only what is missing is run.
    marked = [{"seed": 0, "kept": True}]
    lacking = {**{name: marked for name in arms}, "dissected": marked, "dppo": []}
    whole = {**made, **lacking}
    kept = tmp_path / "off_policy.json"
    kept.write_text(json.dumps(whole), encoding="utf-8")
    again = experiment("off_policy", **small, LATE=2)
    assert again["clip"] == marked
    assert again["dppo"][0]["updates"] == made["dppo"][0]["updates"]


def test_the_experiment_with_thinking_runs(experiment):
    made = experiment(
        "thinking",
        SEEDS=range(1),
        QUESTIONS=4,
        MEASURED_AT=(0, 1, 2),
        ROUNDS=2,
        TOO_LARGE_UPDATES=1,
        EXAM=40,
        FRESH=40,
        LESSONS=(1, 1, 1),
    )
    stored = results.load("thinking")
    assert made.keys() == stored.keys()
    assert [len(lesson) for lesson in made["lessons"]] == [1, 1, 1]
    assert made["first_lesson"].keys() == stored["first_lesson"].keys()
    assert made["first_lesson"]["right_in_the_last_ten_updates"] == made["lessons"][0]
    names = [name for name in stored if isinstance(stored[name], list)]
    names.remove("lessons")
    for mine, theirs in [(made[name][0], stored[name][0]) for name in names]:
        assert mine.keys() == theirs.keys()
        assert mine["curve"][-1].keys() == theirs["curve"][-1].keys()
    steps, others = made["grpo"][0]["updates"], made["random"][0]["updates"]
    assert len(steps) == 2
    assert steps[0].keys() == stored["grpo"][0]["updates"][0].keys()
    # Rule and coin see the same answers, and learn something else from them.
    assert steps[0]["right"] == others[0]["right"]
    assert steps[0]["kl_mean"] != others[0]["kl_mean"]
    ends = [made[name][0]["curve"][-1] for name in names if "rate" not in name]
    assert len({end["kl"] for end in ends}) == len(ends) == 4


def test_the_experiment_with_diagnosis_runs_and_goes_on(experiment):
    small = {"QUESTIONS": 4, "SIZE": 2, "UPDATES": 2}
    one = experiment("diagnosis", SEEDS=range(1), **small)
    stored = results.load("diagnosis")
    assert one.keys() == stored.keys()
    assert one["healthy"][0].keys() == stored["healthy"][0].keys()
    assert (
        one["healthy"][0]["updates"][0].keys() == stored["late"][0]["updates"][0].keys()
    )
    two = experiment("diagnosis", SEEDS=range(2), **small)
    assert [run["seed"] for run in two["rate"]] == [0, 1]
    assert two["rate"][0] == one["rate"][0]


def test_the_experiment_with_rlhf_runs(experiment):
    rlhf = importlib.import_module("experiments.rlhf")
    made = experiment(
        "rlhf",
        SEEDS=range(1),
        QUESTIONS=4,
        SIZE=2,
        UPDATES=2,
        MEASURED_EVERY=2,
        WARM_UP=1,
        evaluate=partial(rlhf.evaluate, questions=10),
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


def test_the_experiment_with_side_by_side_runs(experiment, monkeypatch, tmp_path):
    for name, number in {"ANSWERS": 8, "WARM_UP": 1}.items():
        monkeypatch.setattr(importlib.import_module("experiments.ppo"), name, number)
    small = {
        "SEEDS": range(1),
        "ROWS": 8,
        "SIZE": 4,
        "ANSWERS": 8,
        "WARM_UP": 1,
        "UPDATES": 2,
        "MEASURED_AT": (2,),
        "EXAM": 6,
        "STEPS": 200,
        "MARKS": 2,
        "HORIZONS": {3: 100},
    }
    made = experiment("side_by_side", **small)
    stored = results.load("side_by_side")
    assert made.keys() == stored.keys()
    assert made["settings"].keys() == stored["settings"].keys()
    for world, point in [("maze", "earns"), ("language", "sampled")]:
        assert made[world].keys() == stored[world].keys()
        for name, (run,) in made[world].items():
            theirs = stored[world][name][0]
            assert run.keys() == theirs.keys()
            assert run["curve"][-1].keys() == theirs["curve"][-1].keys()
            assert point in run["curve"][-1]
    # Each algorithm moves the robot in its own way, and all begin with one.
    robots = [runs[0] for runs in made["maze"].values()]
    assert len({robot["curve"][0]["earns"] for robot in robots}) == 1
    assert len({robot["kl_mean"][0] for robot in robots}) == 4
    # What a critic has read counts as sampled.
    updates = {name: len(runs[0]["updates"]) for name, runs in made["language"].items()}
    assert updates == dict.fromkeys(updates, 2) | {"trpo": 1, "ppo": 1}
    assert made["horizon"][0].keys() == stored["horizon"][0].keys()
    # What is stored is kept, and only what is missing is run.
    lacking = {**made, "language": {**made["language"], "grpo": []}}
    kept = tmp_path / "side_by_side.json"
    kept.write_text(json.dumps(lacking), encoding="utf-8")
    again = experiment("side_by_side", **small)
    assert again["maze"] == made["maze"]
    mine, theirs = (r["language"]["grpo"][0] for r in (again, made))
    assert mine["updates"] == theirs["updates"]
