"""The explorers compute what the library computes, and the chapters name them rightly.

Node runs their scripts. A reader needs none; in CI it must be there.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from batches import seeded
from bs4 import BeautifulSoup
from gate import ROOT, book_notebooks
from notebook_rules import load, source

from rl_notes.advantages import group_relative, has_spread
from rl_notes.divergences import k1, k2, k3, kl_exact
from rl_notes.objectives import clipped_surrogate

STATIC = ROOT / "book" / "_static"
NODE = shutil.which("node")
# Every script of the book is loaded, in the order of a page; `expression` may use
# `explorers`, `scripts[name]` (what a script exports) and `data`.
PRELUDE = """
const { data, paths } = JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"));
const scripts = Object.fromEntries(
  Object.entries(paths).map(([name, path]) => [name, require(path)]));
const explorers = scripts["explorers.js"];
const clip = scripts["explorer_clip.js"], kl = scripts["explorer_kl.js"];
const group = scripts["explorer_group.js"];
const result = ((data) => (%s))(data);
process.stdout.write(JSON.stringify(result));
"""

needs_node = pytest.mark.skipif(
    NODE is None and "CI" not in os.environ, reason="node is not installed"
)


def listed_scripts() -> list[Any]:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return list(config["sphinx"]["config"]["html_js_files"])


def run_node(expression: str, data: Any, folder: Path) -> Any:
    """Evaluate a JavaScript expression of `data` beside the explorers' scripts."""
    assert NODE is not None, "CI needs node, to test the explorers' formulas"
    paths = {name: str(STATIC / name) for name, _ in listed_scripts()}
    given = folder / "data.json"
    given.write_text(json.dumps({"data": data, "paths": paths}), encoding="utf-8")
    command = [NODE, "-e", PRELUDE % expression, str(given)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_same(found: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(double(found), expected, rtol=1e-12, atol=1e-12)


# The clip


def clip_points() -> list[list[float]]:
    """Ratio, advantage and both clips: random, on both corners, and without advantage.

    Returns rows of four numbers.
    """
    random = torch.rand(300, 4, dtype=torch.float64, generator=seeded(0))
    low, size = double([0.0, -2.0, 0.05, 0.05]), double([2.5, 4.0, 0.75, 0.75])
    rows = (low + size * random).tolist()
    corners = []
    for _, advantage, clip_low, clip_high in rows[:20]:
        clips = [clip_low, clip_high]
        corners += [
            [1 - clip_low, advantage, *clips],
            [1 + clip_high, advantage, *clips],
        ]
        corners += [[ratio, 0.0, *clips] for ratio in (0.0, 1.0, 2.5)]
    return rows + corners


def in_the_library(points: list[list[float]]) -> list[tuple[float, float]]:
    """The value of `clipped_surrogate` and its gradient in the ratio, at each point."""
    found = []
    for ratio, advantage, clip_low, clip_high in points:
        rho = double([[ratio]]).requires_grad_()
        value = clipped_surrogate(
            rho, double([[advantage]]), clip_low=clip_low, clip_high=clip_high
        ).sum()
        (gradient,) = torch.autograd.grad(value, rho)
        found.append((value.item(), gradient.item()))
    return found


def sides(points: list[list[float]]) -> set[tuple[bool, int]]:
    """Which signs of the advantage occur with a ratio below, within, above the clip."""
    return {
        (advantage > 0, (ratio > 1 + high) - (ratio < 1 - low))
        for ratio, advantage, low, high in points
        if advantage != 0
    }


@needs_node
def test_the_clip_and_its_gradient_are_the_library_s(tmp_path: Path):
    points = clip_points()
    assert sides(points) == {(good, side) for good in (0, 1) for side in (-1, 0, 1)}
    expression = "data.map((p) => [clip.clippedSurrogate(...p), clip.gradient(...p)])"
    assert_same(run_node(expression, points, tmp_path), double(in_the_library(points)))


@needs_node
def test_the_sentence_says_what_the_gradient_does(tmp_path: Path):
    points = clip_points()
    sentences = run_node("data.map((p) => clip.verdict(...p))", points, tmp_path)
    words = {1: "pulls the ratio up", -1: "pulls the ratio down"}
    seen = set()
    for sentence, point, (_, slope) in zip(
        sentences, points, in_the_library(points), strict=True
    ):
        sign = (slope > 0) - (slope < 0)
        idle = "The advantage is zero" if point[1] == 0 else "The clip holds"
        assert words.get(sign, idle) in sentence
        assert "\u2212" not in sentence
        assert not re.search(r"\d", sentence)  # a number would be read aloud each time
        seen.add(sentence)
    assert len(seen) == 9  # the zero, and for each sign: held, corner, near, far


@needs_node
def test_a_slider_on_a_bound_is_not_beyond_it_by_rounding(tmp_path: Path):
    """What counts is the decimals that the reader sees, in hundredths."""
    stops = range(5, 81, 5)
    shown = [
        (ratio, sign, low, high)
        for low, high in zip(stops, reversed(stops), strict=True)
        for ratio in range(0, 251, 5)
        for sign in (-1, 1)
    ]
    points = [[r / 100, a, low / 100, high / 100] for r, a, low, high in shown]
    expression = """data.map(([ratio, a, low, high]) =>
        clip.gradient(clip.onBound(ratio, low, high), a, low, high))"""
    found = run_node(expression, points, tmp_path)
    for (ratio, sign, low, high), slope in zip(shown, found, strict=True):
        held = ratio > 100 + high if sign > 0 else ratio < 100 - low
        assert slope == (0 if held else sign), (ratio, sign, low, high)


# The estimates


def logit_pairs() -> list[list[list[float]]]:
    """Pairs of logits of p and of q, as far apart as the sliders go."""
    random = torch.rand(40, 2, 4, dtype=torch.float64, generator=seeded(1))
    far = [[[3.0, 3.0, 3.0, -3.0], [-3.0, -3.0, -3.0, 3.0]]]
    close = [[[0.5, 0.0, 1.0, -1.0], [0.6, 0.0, 1.0, -1.0]]]
    return (6 * random - 3).tolist() + far + close


def gradient_in_a_loss(estimate, logits, reference):
    """The exact mean of an estimate's gradient, over tokens that the policy samples."""
    logprobs = logits.log_softmax(-1)
    chances = logprobs.detach().exp()
    loss = (chances * estimate(logprobs, reference.log_softmax(-1))).sum()
    return torch.autograd.grad(loss, logits)[0]


def library_study(logits_p: list[float], logits_q: list[float]) -> dict[str, Any]:
    """All that the explorer shows of two policies, by enumeration and autograd."""
    logits, reference = double(logits_p).requires_grad_(), double(logits_q)
    pq, qp = kl_exact(logits, reference), kl_exact(reference, logits)
    found: dict[str, Any] = {
        "p": logits.detach().softmax(-1),
        "q": reference.softmax(-1),
        "pq": {"kl": pq.detach(), "gradient": torch.autograd.grad(pq, logits)[0]},
        "qp": {"kl": qp.detach(), "gradient": torch.autograd.grad(qp, logits)[0]},
    }
    for estimate in (k1, k2, k3):
        logprobs = logits.detach().log_softmax(-1)
        values = estimate(logprobs, reference.log_softmax(-1))
        mean = (found["p"] * values).sum()
        found[estimate.__name__] = {
            "mean": mean,
            "deviation": (found["p"] * (values - mean) ** 2).sum().sqrt(),
            "gradient": gradient_in_a_loss(estimate, logits, reference),
        }
    return found


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory):
    """What the explorer and what the library say of each pair of logits."""
    expression = "data.map(([p, q]) => kl.study(p, q))"
    shown = run_node(expression, logit_pairs(), tmp_path_factory.mktemp("kl"))
    return list(
        zip(shown, [library_study(*pair) for pair in logit_pairs()], strict=True)
    )


@needs_node
def test_the_probabilities_and_both_divergences_are_the_library_s(studies):
    for shown, expected in studies:
        for name in ("p", "q"):
            assert_same(shown[name], expected[name])
        for name in ("pq", "qp"):
            assert_same(shown[name]["kl"], expected[name]["kl"])
            assert_same(shown[name]["gradient"], expected[name]["gradient"])
    assert max(float(expected["pq"]["kl"]) for _, expected in studies) > 4


@needs_node
def test_the_estimates_are_the_library_s(studies):
    for shown, expected in studies:
        assert [one["name"] for one in shown["estimates"]] == ["k1", "k2", "k3"]
        for one in shown["estimates"]:
            for what in ("mean", "deviation", "gradient"):
                assert_same(one[what], expected[one["name"]][what])


@needs_node
def test_the_words_say_which_gradient_an_estimate_has(studies, tmp_path: Path):
    said = run_node("kl.IN_LOSS", None, tmp_path)
    assert set(said) == {"k1", "k2", "k3"}
    for _, expected in studies:
        candidates = {
            "zero": torch.zeros(4, dtype=torch.float64),
            "\u2207KL(p\u2016q)": expected["pq"]["gradient"],
            "\u2207KL(q\u2016p)": expected["qp"]["gradient"],
        }
        for name, words in said.items():
            found = expected[name]["gradient"]
            equal = [
                what
                for what, exact in candidates.items()
                if torch.allclose(found, exact, rtol=0, atol=1e-12)
            ]
            assert equal == [words]


@needs_node
def test_the_sentence_judges_the_estimates_as_the_library_does(studies, tmp_path: Path):
    said = run_node("data.map(kl.verdict)", [shown for shown, _ in studies], tmp_path)
    for sentence, (_, expected) in zip(said, studies, strict=True):
        large = expected["k2"]["mean"] > expected["pq"]["kl"]
        less = expected["k3"]["deviation"] < expected["k1"]["deviation"]
        assert f"k2 is too {'large' if large else 'small'}." in sentence
        assert f"k3 varies {'less' if less else 'more'} than k1." in sentence
    assert len(set(said)) >= 3


@needs_node
@pytest.mark.parametrize("added", [0.0, 1.0])
def test_where_p_is_q_every_number_is_zero(added: float, tmp_path: Path):
    logits = [0.5, -1.0, 2.0, 0.0]
    pair = [logits, [z + added for z in logits]]
    expression = "((found) => [found, kl.verdict(found)])(kl.study(...data))"
    found, sentence = run_node(expression, pair, tmp_path)
    assert sentence.startswith("p and q are equal")
    for one in (found["pq"], found["qp"], *found["estimates"]):
        numbers = [one["gradient"], *(one[k] for k in ("kl", "mean") if k in one)]
        for number in numbers:
            assert double(number).abs().max() < 1e-12


# The group


def groups_of_rewards() -> list[list[float]]:
    """Rewards of groups of 2 to 8, in steps of the sliders; some with equal rewards."""
    found = []
    for size in range(2, 9):
        random = torch.rand(12, size, dtype=torch.float64, generator=seeded(size))
        found += (random * 100).round().div(100).tolist()
        found += (random > 0.7).double().tolist()
        equal = [0.7] * (size - 1)
        found += [[0.7, *equal], [0.1 + 0.6, *equal], [0.70001, *equal]]
    return found


def as_one_group(rewards: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return double(rewards), torch.zeros(len(rewards), dtype=torch.long)


@needs_node
def test_the_advantages_of_a_group_are_the_library_s(tmp_path: Path):
    groups = groups_of_rewards()
    expression = "data.map((r) => [group.groupAdvantages(r), group.hasSpread(r)])"
    for rewards, (shown, spread) in zip(
        groups, run_node(expression, groups, tmp_path), strict=True
    ):
        given = as_one_group(rewards)
        assert spread == bool(has_spread(*given).all())
        if spread:
            assert_same(shown, group_relative(*given))
        else:
            assert shown == [0] * len(rewards)


@needs_node
def test_the_sentence_on_a_group_agrees_with_its_advantages(tmp_path: Path):
    groups = groups_of_rewards()
    sentences = run_node("data.map(group.verdict)", groups, tmp_path)
    seen = set()
    for sentence, rewards in zip(sentences, groups, strict=True):
        advantages = group_relative(*as_one_group(rewards))
        above, below = int((advantages > 1e-9).sum()), int((advantages < -1e-9).sum())
        if above == below == 0:
            words = "All rewards are equal"
        elif len(rewards) == 2:
            words = "A group of two"
        elif above == 1 and below > 1:
            words = "One answer is above the mean"
            assert advantages.max() > -advantages.min()
        elif below == 1 and above > 1:
            words = "One answer is below the mean"
            assert -advantages.min() > advantages.max()
        else:
            words = "Answers above the mean"
        assert sentence.startswith(words)
        assert not re.search(r"\d", sentence)
        seen.add(sentence)
    assert len(seen) == 5


@needs_node
@pytest.mark.parametrize(
    ("typed", "rewards"),
    [
        ("1 0 0.5", [1, 0, 0.5]),
        (" 1, 0;.25 ", [1, 0, 0.25]),
        ("1", None),
        ("1 2 3 4 5 6 7 8 9", None),
        ("1 zero", None),
        ("", None),
    ],
)
def test_rewards_can_be_typed(typed: str, rewards: list[float] | None, tmp_path: Path):
    assert run_node("group.parsed(data)", typed, tmp_path) == rewards


# Numbers


@needs_node
def test_numbers_keep_their_width_and_zero_has_no_sign(tmp_path: Path):
    numbers = [0, -0.0004, 0.0005001, -1.5, 12.3456, -12.3456, 1]
    shown = run_node("data.map((x) => explorers.fixed(x, 3, 7))", numbers, tmp_path)
    assert {len(text) for text in shown} == {7}
    expected = ["0.000", "0.000", "0.001", "\u22121.500", "12.346", "\u221212.346"]
    assert [text.strip("\u2007") for text in shown] == [*expected, "1.000"]


# The scripts and the chapters


def attributes_of(html: str) -> list[dict[str, Any]]:
    """The data- attributes of each explorer in a text, as a browser names them."""
    found = []
    for div in BeautifulSoup(html, "html.parser").select("[data-explorer]"):
        names = {
            re.sub(r"-(\w)", lambda m: m[1].upper(), name.removeprefix("data-")): value
            for name, value in div.attrs.items()
            if name.startswith("data-")
        }
        whole = div.name == "div" and div.get("class") == ["explorer"]
        found.append(names | ({} if whole and not div.contents else {"form": str(div)}))
    return found


def explorer_faults(explorers: list[dict[str, str]], folder: Path) -> list[str]:
    """What is wrong with explorers that are named so, in the words of the scripts."""
    expression = """data.map(({ explorer, ...data }) => {
      const one = explorers.definitions.get(explorer);
      if (!one) return `no explorer is called ${explorer}`;
      const unknown = Object.keys(data).find((name) => !one.attributes.includes(name));
      if (unknown) return `${explorer} has no ${unknown}`;
      try { one.controls(data); } catch (fault) { return fault.message; }
      return "";
    })"""
    return [fault for fault in run_node(expression, explorers, folder) if fault]


def texts() -> Iterator[str]:
    """What the chapters and pages say, cell by cell."""
    for path in book_notebooks():
        for cell in load(path)["cells"]:
            if cell["cell_type"] == "markdown":
                yield source(cell)
    for path in (ROOT / "book").glob("*.md"):
        yield path.read_text(encoding="utf-8")


@needs_node
def test_chapters_name_explorers_that_there_are(tmp_path: Path):
    found = [one for text in texts() for one in attributes_of(text)]
    assert explorer_faults(found, tmp_path) == []


@needs_node
def test_every_explorer_stands_in_some_chapter(tmp_path: Path):
    used = {one["explorer"] for text in texts() for one in attributes_of(text)}
    names = run_node("[...explorers.definitions.keys()]", None, tmp_path)
    assert used == set(names)


@needs_node
@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        ('data-explorer="clip"', None),
        ('data-explorer="clip" data-advantage="-1" data-clip-low="0.3"', None),
        ('data-explorer="kl" data-tokens="a b c d" data-p="0 1 2 -3"', None),
        ('data-explorer="clipp"', "no explorer is called clipp"),
        ('data-explorer="clip" data-epsilon="0.2"', "clip has no epsilon"),
        ('data-explorer="clip" data-ratio="3"', "ratio must lie from 0 to 2.5"),
        ('data-explorer="clip" data-ratio="one"', "ratio must lie from 0 to 2.5"),
        ('data-explorer="kl" data-p="0 1 2"', "4 values are needed"),
        ('data-explorer="group" data-size="4"', None),
        ('data-explorer="group" data-size="1"', "size must lie from 2 to 8"),
        ('data-explorer="group" data-rewards="1 0"', "8 values are needed"),
        ('data-explorer="ask" data-sum="1+2" data-models="sft sft grpo"', None),
        ('data-explorer="ask" data-sum="1-2"', "1-2 is no sum"),
        ('data-explorer="ask" data-seed="one"', "one is no seed"),
        ('data-explorer="ask" data-models="base sft rl"', "There is no model rl"),
        ('data-explorer="train" data-sum="1+2"', None),
        ('data-explorer="train" data-sum="1+"', "1+ is no sum"),
    ],
)
def test_an_explorer_s_name_and_attributes_are_checked(attributes, fault, tmp_path):
    html = f'Text.\n\n<div class="explorer" {attributes}></div>\n\nText.'
    found = explorer_faults(attributes_of(html), tmp_path)
    assert len(found) == (fault is not None)
    assert fault is None or found[0].startswith(fault)


@needs_node
@pytest.mark.parametrize(
    "html",
    [
        '<div class="explorer" data-explorer="clip">Text</div>',
        '<div data-explorer="clip"></div>',
        '<span class="explorer" data-explorer="clip"></span>',
    ],
)
def test_an_explorer_is_an_empty_div_of_its_class(html: str, tmp_path: Path):
    assert explorer_faults(attributes_of(html), tmp_path) == ["clip has no form"]


@needs_node
def test_every_script_but_the_shared_one_defines_an_explorer(tmp_path: Path):
    names = run_node("[...explorers.definitions.keys()]", None, tmp_path)
    assert {f"explorer_{name}.js" for name in names} | {"explorers.js"} == {
        path.name for path in STATIC.glob("*.js")
    }


def test_scripts_are_deferred_and_the_shared_one_comes_first():
    names = [name for name, _ in listed_scripts()]
    assert names[0] == "explorers.js"
    # Of the live parts only what loads the others, and before those who ask for them.
    assert names.index("live/weights.js") < names.index("explorer_ask.js")
    listed = sorted(name for name in names if name != "live/weights.js")
    assert listed == sorted(path.name for path in STATIC.glob("*.js"))
    # A module would have a type, and a page opened as a file may not load it.
    assert all(how == {"defer": "defer"} for _, how in listed_scripts())


def test_scripts_are_plain_and_ask_no_other_host():
    for name, _ in listed_scripts():
        script = (STATIC / name).read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|export)\b|\bimport\(", script, re.MULTILINE)
        assert set(re.findall(r"https?://[^\"\s]+", script)) <= {
            "http://www.w3.org/2000/svg"  # a name space, which nothing asks for
        }
