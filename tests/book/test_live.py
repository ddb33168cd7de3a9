"""The engine of the live parts computes what the library computes.

Node runs the scripts, torch says what should come out. Weights reach node as they reach
a page, as scripts in half precision, so that torch is given the same rounded weights.
"""

import hashlib
import json
import os
import shutil
import struct
import subprocess
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import seeded
from gate import ROOT
from language_models import exact
from live_build import live_weights

from rl_notes import results
from rl_notes.advantages import group_relative, per_step, returns_to_go
from rl_notes.dynamic_programming import (
    advantages,
    expected_return,
    occupancy,
    one_start,
    policy_evaluation,
    value_iteration,
)
from rl_notes.language import arithmetic, models, tokenizer
from rl_notes.language.generation import generate
from rl_notes.maze import MazeVectorEnv
from rl_notes.maze.rules import Maze, perfect_maze
from rl_notes.objectives import mean_over_sequences, mean_over_tokens, token_clip
from rl_notes.policies import TabularPolicy, TransformerPolicy, action_logprobs
from rl_notes.rollouts import rollout
from rl_notes.trajectories import with_scores
from rl_notes.updates import grpo_update, reinforce_update

LIVE = ROOT / "book" / "_static" / "live"
NODE = shutil.which("node")
SCRIPTS = ("engine.js", "worlds.js", "weights.js", "training.js")
EXPLORERS = (
    "explorers.js",
    "explorer_ask.js",
    "explorer_train.js",
    "explorer_robot.js",
    "explorer_drive.js",
)
NAMES = ("base", "sft", "grpo")
TOKENS = tokenizer.build()
# A body may use `engine`, `worlds`, `training`, `model(name)`, `policy(name)`, `data`
# and what the explorers export.
PRELUDE = """
const { data, paths } = JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"));
const [, , loader, , , ask, train, robot, drive] = paths.map((path) => require(path));
const { engine, worlds, training } = live;
const { arrived } = loader;
const model = (name) => new engine.Llama(engine.readWeights(arrived.get(name)));
const policy = (name, temperature = 1) =>
  new engine.LanguagePolicy(model(name), temperature);
/** Uniform numbers, or orders, that torch has drawn, one after the other. */
const given = (drawn) => () => drawn[given.at++];
const list = (x) => Array.from(x);
const result = ((data) => { given.at = 0; %s })(data);
process.stdout.write(JSON.stringify(result));
"""

pytestmark = pytest.mark.skipif(
    NODE is None and "CI" not in os.environ, reason="node is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the build has written the weights."""
    found = tmp_path_factory.mktemp("live")
    live_weights().write_weights(found)
    return found


@pytest.fixture
def run_node(folder: Path):
    def run(body: str, data: Any) -> Any:
        """What the body of a function of `data` returns beside the live scripts."""
        assert NODE is not None, "CI needs node, to test the live parts"
        paths = [str(LIVE / name) for name in SCRIPTS]
        paths += [str(LIVE.parent / name) for name in EXPLORERS]
        paths += [str(folder / f"weights_{name}.js") for name in NAMES]
        given = folder / "data.json"
        given.write_text(json.dumps({"data": data, "paths": paths}), encoding="utf-8")
        command = [NODE, "-e", PRELUDE % body, str(given)]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@cache
def whole(name: str) -> Any:
    """A shipped model in float32."""
    return models.load(name)[0]


def rounded(name: str) -> Any:
    """A fresh copy of a shipped model, its weights rounded to half precision."""
    model = models.load(name)[0]
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())
    return model


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_same(found: Any, expected: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(
        double(found), expected.double(), rtol=tolerance, atol=tolerance
    )


def relative(found: Any, expected: torch.Tensor) -> float:
    """The length of the difference as a share of what is expected."""
    expected = expected.detach().double()
    return float((double(found) - expected.flatten()).norm() / expected.norm())


def asked(n: int, seed: int, *, held_out: bool = False) -> list[str]:
    return arithmetic.questions(n, held_out=held_out, generator=seeded(seed))


def uniforms(rows: int, steps: int, seed: int) -> list[float]:
    """What a sampler draws from a generator with this seed, step after step."""
    generator = seeded(seed)
    drawn = [
        torch.rand(rows, generator=generator, dtype=torch.float64).tolist()
        for _ in range(steps)
    ]
    return [u for step in drawn for u in step]


def as_rows(batch: Any) -> list[dict[str, Any]]:
    """Sampled answers as the engine's rows."""
    found = []
    for n, mask in enumerate(batch.mask):
        first = int(mask.int().argmax())
        found.append(
            {
                "prompt": batch.observations[n, : first + 1].tolist(),
                "actions": batch.actions[n, mask].tolist(),
                "logprobs": batch.logprobs[n, mask].tolist(),
                "group": int(batch.groups[n]),
            }
        )
    return found


# The weights


def test_half_precision_is_read_as_python_reads_it(run_node):
    patterns = [bits for bits in range(2**16) if bits & 0x7C00 != 0x7C00]
    found = run_node("return data.map(engine.fromHalf)", patterns)
    packed = struct.pack(f"<{len(patterns)}H", *patterns)
    assert found == list(struct.unpack(f"<{len(patterns)}e", packed))


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_arrive_in_half_precision(name: str, run_node, folder: Path):
    body = """const { tensors } = policy(data).model;
      return engine.LAYOUT.map(([name, shape]) => [name, shape, list(tensors[name])])"""
    found = run_node(body, name)
    state = rounded(name).state_dict()
    assert {key: tuple(shape) for key, shape, _ in found} == {
        key: tuple(tensor.shape) for key, tensor in state.items()
    }
    for key, _, numbers in found:
        assert torch.equal(torch.tensor(numbers), state[key].flatten()), key
    assert (folder / f"weights_{name}.js").stat().st_size < 360_000


def test_weights_of_another_shape_are_refused(run_node):
    body = """const packed = { ...arrived.get("sft"), layout: [] };
      try { engine.readWeights(packed); } catch (fault) { return fault.message; }"""
    assert "another model" in run_node(body, None)


def test_tensors_of_another_number_format_are_refused(tmp_path: Path):
    header = b'{"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}'
    path = tmp_path / "half.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ValueError, match="w is F16"):
        live_weights().read_safetensors(path)


def test_a_model_is_loaded_once_and_can_be_tried_again(run_node):
    """In a page of three lines: what stands in its head, and what came of asking."""
    body = """const added = [], seen = [];
      const head = { append: (node) => added.push(node) };
      globalThis.document = {
        head, currentScript: { src: "file:///a/live/weights.js" },
        createElement: () => ({ remove: () => {} }) };
      delete require.cache[require.resolve(paths[2])];
      require(paths[2]);
      const found = [live.weights("sft"), live.weights("sft")];
      added[0].onerror();
      found.push(live.weights("sft"));
      found.forEach((one) => one.catch(() => {}));
      return added.map((node) => node.src);"""
    source = "file:///a/live/weights_sft.js"
    assert run_node(body, None) == [source, source]


# The model


def texts_of_all_kinds() -> list[list[int]]:
    """Questions, answers and lists, and one text as long as the model can read."""
    questions = asked(30, 0)
    texts = [q + arithmetic.worked_answer(q) for q in questions[:15]]
    texts += [q + arithmetic.direct_answer(q) for q in questions]
    texts += arithmetic.documents(10, generator=seeded(1))
    ids = tokenizer.encode(TOKENS, texts)
    longest = torch.randint(22, (tokenizer.CONTEXT,), generator=seeded(2)).tolist()
    return [*ids, longest]


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_are_those_of_transformers(name: str, run_node):
    texts = texts_of_all_kinds()
    body = """const tree = new engine.PrefixTree();
      const paths = data.texts.map((text) => tree.path(text));
      const { memory } = policy(data.name).model.forward(tree);
      const at = (node) => list(memory.logits.slice(22 * node, 22 * node + 22));
      return { size: tree.size, logits: paths.map((nodes) => nodes.map(at)) };"""
    found = run_node(body, {"name": name, "texts": texts})
    prefixes = {tuple(text[: n + 1]) for text in texts for n in range(len(text))}
    assert found["size"] == len(prefixes) < sum(map(len, texts))
    model = rounded(name)
    with torch.no_grad():
        for text, logits in zip(texts, found["logits"], strict=True):
            expected = model(input_ids=torch.tensor([text])).logits[0]
            assert_same(logits, expected, 1e-4)


def test_the_same_comes_out_step_by_step(run_node):
    """What was run stays as it is when more is run, as in a sampler."""
    body = """const tree = new engine.PrefixTree(), memory = new engine.Memory();
      const { model } = policy("sft");
      const nodes = data.map((text) => text.map((token, i) => {
        const node = tree.path(text.slice(0, i + 1)).at(-1);
        if (tree.size > memory.nodes) model.forward(tree, memory);
        return node; }));
      const whole = model.forward(tree).memory.logits;
      return Math.max(...whole.map((x, i) => Math.abs(x - memory.logits[i])));"""
    assert run_node(body, texts_of_all_kinds()[:8]) == 0


def test_a_text_that_is_too_long_is_refused(run_node):
    body = """const tree = new engine.PrefixTree();
      try { tree.path(Array(129).fill(3)); } catch (fault) { return fault.message; }"""
    assert "at most 128" in run_node(body, None)


@cache
def sampled(name: str = "sft", temperature: float = 1.0) -> Any:
    """8 answers to each of 8 questions, with the seed 5."""
    policy = TransformerPolicy(rounded(name), temperature)
    prompts = tokenizer.encode(TOKENS, asked(8, 3))
    return generate(
        policy, prompts, group_size=8, max_new_tokens=40, generator=seeded(5)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_uniforms_give_the_same_tokens(
    name: str, temperature: float, run_node
):
    batch = sampled(name, temperature)
    expected = as_rows(batch)
    body = """return engine.generate(policy(data.name, data.temperature), data.prompts,
        { size: 8, most: 40, uniform: given(data.uniforms) });"""
    data = {"name": name, "temperature": temperature}
    data["prompts"] = [row["prompt"] for row in expected[::8]]
    data["uniforms"] = uniforms(64, 40, 5)
    for found, row in zip(run_node(body, data), expected, strict=True):
        assert found["actions"] == row["actions"]
        assert found["group"] == row["group"]
        assert_same(found["logprobs"], double(row["logprobs"]), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_changes_no_greedy_answer(name: str, run_node):
    """Of 500 held-out questions; torch has the weights in float32.

    But for "base", which asks on and on, and where one question is often as likely as
    another to the third decimal: there torch has the rounded weights, and with those of
    float32 5 of 500 are other questions.
    """
    prompts = tokenizer.encode(TOKENS, asked(500, 7, held_out=True))
    most = 24 if name == "base" else 50
    batch = generate(
        TransformerPolicy(rounded(name) if name == "base" else whole(name), 1e-6),
        prompts,
        max_new_tokens=most,
        generator=seeded(0),
    )
    body = """const options = { most: data.most, greedy: true };
      return engine.generate(policy(data.name), data.prompts, options)
        .map((row) => row.actions);"""
    found = run_node(body, {"name": name, "prompts": prompts, "most": most})
    assert found == [row["actions"] for row in as_rows(batch)]


# The updates


def off_policy() -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Answers, log-probabilities that are not the policy's, and an advantage a step."""
    batch = sampled()
    noise = torch.randn(2, *batch.mask.shape, generator=seeded(8)) * batch.mask
    ahead = noise[1]
    ahead[:8] = 0  # the first group has no gradient
    return batch, batch.logprobs + 0.4 * noise[0], ahead


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("aggregate", "name"),
    [(mean_over_tokens, "meanOverTokens"), (mean_over_sequences, "meanOverSequences")],
)
def test_every_gradient_of_the_clip_is_autograd_s(
    aggregate, name: str, temperature: float, run_node
):
    """Of the model in float64, so that what differs is the engine's rounding."""
    batch, old, ahead = off_policy()
    model = exact(rounded("sft"))
    new = action_logprobs(TransformerPolicy(model, temperature), batch)
    clip = partial(token_clip, clip_low=0.2, clip_high=0.3)
    aggregate(clip(new, old, ahead, batch.mask), batch.mask).backward()
    ratio, sign = (new - old).exp()[batch.mask], ahead[batch.mask].sign()
    for flat in ((sign > 0) & (ratio > 1.3), (sign < 0) & (ratio < 0.8)):
        assert 0.05 < flat.float().mean() < 0.4
    body = """const p = policy("sft", data.temperature);
      const objective = engine.tokenClip(0.2, 0.3);
      const aggregate = engine[data.aggregate];
      engine.takeGradient(p, data.rows, data.ahead, { objective, aggregate });
      const { gradients } = p.model;
      return Object.entries(gradients).map(([name, g]) => [name, list(g)]);"""
    rows = as_rows(batch)
    for row, numbers, mask in zip(rows, old, batch.mask, strict=True):
        row["logprobs"] = numbers[mask].tolist()
    data = {
        "rows": rows,
        "ahead": [a[m].tolist() for a, m in zip(ahead, batch.mask, strict=True)],
        "aggregate": name,
        "temperature": temperature,
    }
    found = dict(run_node(body, data))
    expected = {key: w.grad for key, w in model.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert relative(found[key], gradient) < 5e-6, key


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_steps_are_those_of_torch_optim(kind: str, run_node):
    start, *gradients = torch.randn(6, 500, generator=seeded(10))
    gradients[3] *= 0  # momentum goes on
    weights = torch.nn.Parameter(start.clone())
    optimizer = getattr(torch.optim, kind)([weights], lr=0.01, maximize=True)
    for gradient in gradients:
        weights.grad = gradient
        optimizer.step()
    body = """const weights = Float32Array.from(data.start);
      const optimizer = new engine[data.kind]({ rate: 0.01 });
      data.gradients.forEach((g) => optimizer.step(weights, Float32Array.from(g)));
      return list(weights);"""
    data = {"start": start.tolist(), "gradients": [g.tolist() for g in gradients]}
    data["kind"] = kind.capitalize()
    assert_same(run_node(body, data), weights.detach(), 1e-6)


QUESTIONS, SIZE, MOST = 6, 8, 40


def five_updates() -> tuple[Any, list[Any], list[dict[str, Any]]]:
    """The policy after five updates, each batch, and what was drawn for each."""
    policy = TransformerPolicy(rounded("sft"))
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-4)
    batches, drawn = [], []
    for update in range(5):
        questions = asked(QUESTIONS, 20 + update)
        prompts = tokenizer.encode(TOKENS, questions)
        batch = generate(
            policy,
            prompts,
            group_size=SIZE,
            max_new_tokens=MOST,
            generator=seeded(30 + update),
        )
        texts = tokenizer.answer_texts(TOKENS, batch)
        truth = [questions[g] for g in batch.groups.tolist()]
        scores = torch.tensor(arithmetic.accuracy_reward(truth, texts))
        stats = grpo_update(
            policy,
            optimizer,
            with_scores(batch, scores),
            per_step(group_relative(scores, batch.groups), batch.mask),
            objective=partial(token_clip, clip_low=0.2, clip_high=0.2),
            epochs=2,
            minibatches=3,
            generator=seeded(40 + update),
            aggregate=mean_over_tokens,
        )
        order = seeded(40 + update)
        rows = QUESTIONS * SIZE
        drawn.append(
            {
                "questions": questions,
                "uniforms": uniforms(rows, MOST, 30 + update),
                "orders": [
                    torch.randperm(rows, generator=order).tolist() for _ in "12"
                ],
            }
        )
        batches.append((batch, scores, stats))
    return policy, batches, drawn


def test_five_updates_are_those_of_the_library(run_node):
    """Questions, answers, rewards, groups, minibatches, steps: all from given draws."""
    policy, batches, drawn = five_updates()
    body = """const p = policy("sft"), optimizer = new engine.Adam({ rate: 2e-4 });
      const updates = data.map(({ questions, uniforms, orders }) => {
        given.at = 0;
        const prompts = questions.map((question) => worlds.encode(question));
        const rows = engine.generate(p, prompts,
          { size: 8, most: 40, uniform: given(uniforms) });
        const scores = rows.map(({ group, actions }) =>
          Number(worlds.isRight(worlds.answerText(actions), questions[group])));
        const advantages = engine.groupRelative(scores, rows.map((row) => row.group));
        const some = rows.filter((_, n) => advantages[n] !== 0);
        given.at = 0;
        const before = p.run(some);
        engine.grpoUpdate(p, optimizer, rows, scores,
          { epochs: 2, minibatches: 3, order: given(orders) });
        const { kl, entropy, ratios } = engine.compare(before, p.run(some), some);
        return { rows, scores, kl, entropy, ratios: ratios.flat() };
      });
      return { updates, weights: list(p.weights) };"""
    found = run_node(body, drawn)
    for update, (batch, scores, stats) in zip(found["updates"], batches, strict=True):
        assert [row["actions"] for row in update["rows"]] == [
            row["actions"] for row in as_rows(batch)
        ]
        assert update["scores"] == scores.tolist()
        assert update["kl"] == pytest.approx(stats.kl_mean, rel=1e-2)
        assert update["entropy"] == pytest.approx(stats.entropy, rel=1e-4)
        assert max(update["ratios"]) == pytest.approx(stats.ratio_max, rel=1e-3)
        assert min(update["ratios"]) == pytest.approx(stats.ratio_min, rel=1e-3)
    state = policy.model.state_dict()
    start = rounded("sft").state_dict()
    after, before = (
        torch.cat([each[key].flatten() for key in sorted(each)])
        for each in (state, start)
    )
    moved = double(found["weights"]) - before.double()
    assert relative(moved.tolist(), after.double() - before.double()) < 1e-2


def test_group_advantages_are_the_library_s(run_node):
    batches = []
    for seed in range(20):
        scores = torch.rand(24, generator=seeded(seed), dtype=torch.float64)
        scores = scores.round() if seed % 2 else 100 * scores
        scores[8:16] = 0.1 + 0.6
        scores[9] = 0.7
        groups = torch.arange(24) // 8
        batches.append((scores.tolist(), groups.tolist()))
    body = """return data.map(([scores, groups]) => [true, false].map((scale) =>
        engine.groupRelative(scores, groups, { scale })));"""
    for (given, members), found in zip(batches, run_node(body, batches), strict=True):
        for scale, one in zip((True, False), found, strict=True):
            expected = group_relative(double(given), torch.tensor(members), scale=scale)
            assert_same(one, expected)


def test_rows_are_dealt_out_as_torch_splits(run_node):
    sizes = [(n, parts) for n in range(1, 20) for parts in range(1, n + 1)]
    body = "return data.map(([n, k]) => engine.split([...Array(n).keys()], k));"
    for (n, parts), found in zip(sizes, run_node(body, sizes), strict=True):
        expected = torch.arange(n).tensor_split(parts)
        assert found == [part.tolist() for part in expected]


def test_uniform_numbers_are_uniform_and_differ_by_seed(run_node):
    body = """return data.map((seed) => {
        const u = engine.uniforms(seed);
        return Array.from({ length: 20000 }, u); });"""
    drawn = double(run_node(body, [0, 1, 2, 3]))
    assert bool(((drawn >= 0) & (drawn < 1)).all())
    assert drawn.unique().numel() == drawn.numel()
    for each in drawn:
        shares = torch.histc(each, 20, 0, 1) / len(each)
        assert (shares - 0.05).abs().max() < 0.008  # five standard deviations
        assert (
            abs(float(torch.corrcoef(torch.stack([each[1:], each[:-1]]))[0, 1])) < 0.04
        )
    orders = run_node(
        "const u = engine.uniforms(1); return data.map((n) => engine.shuffled(n, u));",
        [9] * 900,
    )
    assert all(sorted(order) == list(range(9)) for order in orders)
    places = torch.tensor(orders).float().mean(dim=0)
    assert (places - 4).abs().max() < 0.45


def test_a_worker_can_be_made_from_the_text_of_the_scripts(run_node):
    """Neither uses anything outside itself but what every JavaScript has."""
    body = """const text = `const engine = (${live.makeEngine})();
        const worlds = (${live.makeWorlds})(engine);
        [engine.SIZE, worlds.isRight("1+2 is 3", "What is 1+2?")]`;
      return require("vm").runInNewContext(text);"""
    size = sum(w.numel() for w in whole("sft").parameters())
    assert run_node(body, None) == [size, True]


# Sums


def test_texts_are_cut_into_the_tokenizer_s_tokens(run_node):
    texts = arithmetic.documents(1000, generator=seeded(11))
    texts += [q + arithmetic.worked_answer(q) for q in asked(1000, 12)]
    texts += ["", " is  is ", "What is What is ", "<think></think>\n"]
    body = """const answers = data.map((text) => worlds.encode(text, { begin: false }));
      const prompts = data.map((text) => worlds.encode(text));
      return [prompts, answers, answers.map(worlds.answerText)];"""
    whole_text, answers, back = run_node(body, texts)
    assert whole_text == tokenizer.encode(TOKENS, texts)
    assert answers == tokenizer.encode(TOKENS, texts, begin=False)
    assert back == texts


def test_texts_that_cannot_be_read_are_refused(run_node):
    texts = ["What is 1+1? ", "one", "<pad>", "<eos>", "1\u0662", "\U0001f600", "What"]
    body = """return data.map((text) => {
        try { worlds.encode(text); } catch (fault) { return fault.message; }
        return "";
      });"""
    assert all("knows no" in said for said in run_node(body, texts))
    for text in texts:
        with pytest.raises(ValueError, match="vocabulary"):
            tokenizer.encode(TOKENS, [text])


def test_sampled_tokens_become_the_verifier_s_text(run_node):
    rows = torch.randint(22, (2000, 12), generator=seeded(13)).tolist()
    found = run_node("return data.map(worlds.answerText);", rows)
    assert found == [tokenizer.answer_text(TOKENS, row) for row in rows]


def answers_good_and_bad() -> list[tuple[str, str]]:
    """Questions and texts: right answers, and some with one to three edits."""
    generator = np.random.default_rng(0)
    pieces = [*tokenizer.VOCABULARY, "01", " ", "-", "\u0661", "\n", "0"]
    found = []
    for question in asked(2500, 14):
        text = arithmetic.direct_answer(question)
        if generator.random() < 0.5:
            text = arithmetic.worked_answer(question)
        if generator.random() < 0.1:
            text = "\n" + question + text
        for _ in range(generator.integers(4)):
            parts = list(text) if generator.random() < 0.5 else text.split("<")
            at = int(generator.integers(len(parts) + 1))
            more = [pieces[generator.integers(len(pieces))]] * (
                generator.random() < 0.6
            )
            text = "".join(parts[:at] + more + parts[at + (generator.random() < 0.6) :])
        found.append((question, text))
    return found


def test_the_verifier_is_the_library_s(run_node):
    cases = answers_good_and_bad()
    body = """return data.map(([question, text]) => [
        worlds.isRight(text, question), worlds.followsForm(text, question),
        worlds.showsWork(text), worlds.asksAgain(text)]);"""
    expected = [
        [
            arithmetic.is_right(text, question),
            arithmetic.follows_form(text, question),
            arithmetic.shows_work(text),
            arithmetic.asks_again(text),
        ]
        for question, text in cases
    ]
    found = run_node(body, cases)
    assert found == expected
    for judged, least in zip(
        zip(*expected, strict=True), (300, 300, 300, 20), strict=True
    ):
        assert least < sum(judged) < len(cases) - least


def test_questions_and_their_answers_are_the_library_s(run_node):
    questions = [
        *asked(2000, 15),
        *(f"What is {a}+{b}?" for a in range(20) for b in range(20)),
    ]
    body = """return data.map((question) => [worlds.numbers(question),
        worlds.directAnswer(question), worlds.workedAnswer(question)]);"""
    for question, (pair, direct, worked) in zip(
        questions, run_node(body, questions), strict=True
    ):
        assert tuple(pair) == arithmetic.numbers(question)
        assert direct == arithmetic.direct_answer(question)
        assert worked == arithmetic.worked_answer(question)
    wrong = ["What is 1+2", "What is 1+2?\n", "What is 01+2?", "What is 1+20000?", ""]
    body = """return data.map((text) => {
        try { worlds.directAnswer(text); } catch { return worlds.numbers(text); }
        return "an answer";
      });"""
    assert run_node(body, wrong) == [None] * len(wrong)


def test_the_hash_is_sha_256(run_node):
    texts = ["abcdefghij0123456789"[n % 20] * n for n in range(56)]
    for text, words in zip(
        texts, run_node("return data.map(worlds.sha256);", texts), strict=True
    ):
        digest = hashlib.sha256(text.encode()).digest()
        assert struct.pack(">8I", *words) == digest


def test_the_same_pairs_are_held_out(run_node):
    pairs = torch.randint(10_000, (20_000, 2), generator=seeded(16)).tolist()
    pairs += [[a, b] for a in range(30) for b in range(30)]
    found = run_node("return data.map(([a, b]) => worlds.isHeldOut(a, b));", pairs)
    assert found == [arithmetic.is_held_out(*pair) for pair in pairs]
    assert 0.08 < sum(found) / len(found) < 0.12


def test_questions_are_drawn_as_the_library_draws_them(run_node):
    grid = torch.rand(2000, generator=seeded(17), dtype=torch.float64).tolist()
    cases = [(digits, u) for digits in (1, 2, 3, 4) for u in grid]
    body = "return data.map(([digits, u]) => worlds.numberOf(digits, u));"
    assert run_node(body, cases) == [arithmetic._number(*case) for case in cases]
    body = """const uniform = engine.uniforms(3);
      return [false, true].map((heldOut) => [
        worlds.drawQuestions(2000, { heldOut, uniform }),
        worlds.drawQuestions(200, { heldOut, uniform, from: 2, to: 3 })]);"""
    for held_out, (some, short) in zip(
        (False, True), run_node(body, None), strict=True
    ):
        pairs = [arithmetic.numbers(question) for question in some + short]
        assert {arithmetic.is_held_out(*pair) for pair in pairs} == {held_out}
        digits = [len(str(n)) for pair in pairs[:2000] for n in pair]
        for size in (1, 2, 3, 4):
            assert 0.18 < digits.count(size) / len(digits) < 0.3
        assert {len(str(n)) for pair in pairs[2000:] for n in pair} == {2, 3}


# The maze


def raw_bits(seed: int, n: int) -> list[str]:
    """What numpy's generator says first; as text, as it is more than a double holds."""
    return [str(bits) for bits in np.random.PCG64(seed).random_raw(n)]


def test_mazes_are_carved_as_the_library_carves_them(run_node):
    cases = [(size, seed) for size in (2, 3, 5, 8) for seed in range(5)]
    data = [[size, raw_bits(seed, size**2)] for size, seed in cases]
    body = """return data.map(([size, bits]) => {
        let at = 0;
        return worlds.carve(size, (n) => Number(BigInt(bits[at++]) % BigInt(n)));
      });"""
    for case, walls in zip(cases, run_node(body, data), strict=True):
        assert walls == perfect_maze(*case).flatten().tolist()


def test_the_book_s_mazes_are_stored_rightly(run_node):
    body = """return Object.keys(worlds.BOOK_MAZES).map((name) =>
        [name, worlds.bookMaze(name)]);"""
    found = run_node(body, None)
    assert len(found) == 2
    for name, walls in found:
        size, seed = map(int, name.split("/"))
        assert walls == perfect_maze(size, seed).flatten().tolist()


MAZE = Maze(size=5)
MOVED = {"stepReward": -0.03, "bumpReward": 0.02, "exitReward": 2}


def test_the_tables_of_a_maze_are_the_library_s(run_node):
    body = """return [{}, data].map((options) => {
        const maze = worlds.mazeTables(worlds.bookMaze("5/0"), options);
        return [list(maze.next), list(maze.rewards)];
      });"""
    mazes = [MAZE, Maze(5, 0, 0.0, *MOVED.values())]
    for maze, (targets, rewards) in zip(mazes, run_node(body, MOVED), strict=True):
        assert targets == maze.next_state.flatten().tolist()
        assert_same(rewards, maze.rewards.flatten())


def some_logits() -> torch.Tensor:
    return torch.randn(
        MAZE.states, 3, generator=seeded(18), dtype=torch.float64
    ).requires_grad_()


def test_exact_values_and_the_exact_gradient_are_dynamic_programming_s(run_node):
    logits, start = some_logits(), one_start(MAZE, 1)
    probabilities = logits.softmax(-1)
    held = probabilities.detach()
    total = expected_return(MAZE, probabilities, discount=0.95, start=start)
    expected = {
        "best": value_iteration(MAZE, discount=0.95),
        "values": policy_evaluation(MAZE, held, discount=0.95),
        "visits": occupancy(MAZE, held, discount=0.95, start=start),
        "gradient": torch.autograd.grad(total, logits)[0].flatten(),
        "ahead": advantages(MAZE, held, discount=0.95).flatten(),
    }
    body = """const maze = worlds.mazeTables(worlds.bookMaze("5/0"));
      const table = new worlds.TablePolicy(maze.states);
      table.weights.set(data.logits);
      const pi = table.probabilities();
      const start = new Float64Array(maze.states);
      start[worlds.START] = 1;
      const values = worlds.policyEvaluation(maze, pi, 0.95);
      const q = worlds.actionValues(maze, values, 0.95);
      return {
        best: list(worlds.valueIteration(maze, { discount: 0.95 })),
        values: list(values),
        visits: list(worlds.occupancy(maze, pi, 0.95, start)),
        gradient: list(worlds.exactGradient(maze, pi, 0.95, start)),
        ahead: list(q.map((one, at) => one - values[Math.floor(at / 3)])),
      };"""
    found = run_node(body, {"logits": logits.flatten().tolist()})
    for name, exactly in expected.items():
        assert_same(found[name], exactly, 1e-10)


def robot(logits: torch.Tensor) -> TabularPolicy:
    policy = TabularPolicy(MAZE.states, 3).double()
    with torch.no_grad():
        policy.logits.copy_(logits)
    return policy


# Four episodes from each of three states near the exit.
STARTS = [MAZE.fewest_moves.tolist().index(far) for far in (2, 3, 5) for _ in range(4)]


def played() -> tuple[Any, list[float]]:
    """Twelve episodes, from three starts, and the uniforms that they were drawn by."""
    env = MazeVectorEnv(12, size=5, max_episode_steps=60)
    policy = robot(some_logits().detach())
    episodes = rollout(
        env,
        policy,
        episodes=12,
        discount=0.95,
        generator=seeded(19),
        starts=STARTS[::4],
        group_size=4,
    )
    draw_seed = int(torch.randint(2**31 - 1, (1, 2), generator=seeded(19))[0, 0])
    return episodes, uniforms(12, 60, draw_seed)


@pytest.mark.parametrize("kind", ["reinforce", "grpo"])
def test_the_robot_learns_as_in_the_library(kind: str, run_node):
    """Episodes, returns and one update by REINFORCE or GRPO, from the same draws."""
    episodes, drawn = played()
    policy = robot(some_logits().detach())
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    # A robot that was cut off counts what it has, here as in the engine.
    returns = returns_to_go(episodes)
    assert float((returns[:, 0] > 0.2).float().mean()) > 0.1
    orders = []
    if kind == "reinforce":
        reinforce_update(policy, optimizer, episodes, returns)
    else:
        scores = group_relative(returns[:, 0], episodes.groups)
        orders = [torch.randperm(12, generator=g).tolist() for g in [seeded(21)]]
        grpo_update(
            policy,
            optimizer,
            episodes,
            per_step(scores, episodes.mask),
            objective=partial(token_clip, clip_low=0.2, clip_high=0.2),
            epochs=1,
            minibatches=4,
            generator=seeded(21),
            aggregate=mean_over_tokens,
        )
    body = """const maze = worlds.mazeTables(worlds.bookMaze("5/0"));
      const table = new worlds.TablePolicy(maze.states);
      table.weights.set(data.logits);
      const groups = data.starts.map((_, i) => Math.floor(i / 4));
      const uniform = given(data.drawn);
      const options = { groups, most: 60, uniform };
      const rows = worlds.playEpisodes(maze, table, data.starts, options);
      const returns = rows.map((row) => worlds.returnsToGo(row, 0.95));
      const optimizer = new engine.Sgd({ rate: 0.5 });
      given.at = 0;
      if (data.kind === "reinforce") {
        engine.reinforceUpdate(table, optimizer, rows, returns);
      } else {
        const scores = returns.map((one) => one[0]);
        const order = given(data.orders);
        engine.grpoUpdate(table, optimizer, rows, scores, { minibatches: 4, order });
      }
      return { rows, returns, logits: list(table.weights) };"""
    data = {"logits": some_logits().flatten().tolist(), "starts": STARTS}
    found = run_node(body, data | {"drawn": drawn, "orders": orders, "kind": kind})
    for n, (row, ahead) in enumerate(zip(found["rows"], found["returns"], strict=True)):
        mask = episodes.mask[n]
        assert row["actions"] == episodes.actions[n, mask].tolist()
        assert_same(ahead, returns[n, mask], 1e-6)
    assert_same(found["logits"], policy.logits.detach().flatten(), 1e-6)
    assert (policy.logits - some_logits()).abs().max() > 0.01


# Asking the models in a page


@pytest.mark.parametrize(
    ("typed", "question"),
    [
        ("47+85", "What is 47+85?"),
        (" 47 + 85 ", "What is 47+85?"),
        ("what is 0+9999?", "What is 0+9999?"),
        ("What  is 1 + 2 ?", "What is 1+2?"),
        ("047+85", None),
        ("47-85", None),
        ("47+85+1", None),
        ("12345+1", None),
        ("4 7+85", None),
        ("", None),
    ],
)
def test_a_typed_sum_becomes_a_question_or_is_refused(typed, question, run_node):
    assert run_node("return ask.questionFrom(data);", typed) == question


@pytest.mark.parametrize("temperature", [0, 0.5, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_samples_as_the_engine_does(name: str, temperature: float, run_node):
    """Token by token with a seed, as `generate` does with its uniform numbers."""
    body = """return data.asked.map((question) => {
        const { temperature, name } = data;
        const options = { most: 64, greedy: temperature === 0 };
        options.uniform = engine.uniforms(7);
        const prompts = [worlds.encode(question)];
        const [row] = engine.generate(policy(name, temperature || 1), prompts, options);
        const one = new ask.Writing(model(name), question, { temperature, seed: 7 });
        while (one.next());
        const sum = row.logprobs.reduce((a, b) => a + b);
        return [row.actions, one.tokens, sum, one.logprob];
      });"""
    data = {"name": name, "temperature": temperature, "asked": asked(6, 30)}
    for expected, found, sure, said in run_node(body, data):
        assert found == expected
        assert said == pytest.approx(sure, abs=1e-6)


def test_another_token_leads_on_from_its_place(run_node):
    """What was written before stays, and the rest is what the model says to it."""
    body = """const first = new ask.Writing(model("sft"), "What is 47+85?",
        { temperature: 0, seed: 1 });
      while (first.next());
      const other = first.branch(0, worlds.VOCABULARY.indexOf("<think>"));
      while (other.next());
      const told = (one) => worlds.answerText(one.tokens);
      return [told(first), told(other), other.from, first.steps[0].chosen ?? null,
        other.steps[0].chosen, list(other.steps[0].logprobs).map(Math.exp)];"""
    first, other, *rest, shares = run_node(body, None)
    assert first == "47+85 is 132"
    assert other == "<think>7+5=12,4+8+1=13</think>47+85 is 132"
    assert rest == [0, None, True]
    prompt = torch.tensor(tokenizer.encode(TOKENS, ["What is 47+85?"]))
    logits = rounded("sft")(input_ids=prompt).logits[0, -1]
    assert_same(shares, logits.softmax(-1), 1e-4)


def test_the_bars_are_the_likeliest_tokens_and_leave_nothing_out(run_node):
    logits = torch.randn(40, 22, generator=seeded(31), dtype=torch.float64) * 4
    rows = logits.log_softmax(-1)
    found = run_node("return data.map(ask.choices);", rows.tolist())
    for row, one in zip(rows, found, strict=True):
        p, order = row.exp().sort(descending=True)
        n = len(one["shown"])
        assert [bar["token"] for bar in one["shown"]] == order[:n].tolist()
        assert 4 <= n <= 8
        assert n == 8 or p[n] < 0.001
        assert one["others"] == 22 - n
        total = sum(bar["p"] for bar in one["shown"]) + one["rest"]
        assert total == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "mark", "words"),
    [
        ("47+85 is 132", "\u2713", "right, at once"),
        ("<think>7+5=12,4+8+1=13</think>47+85 is 132", "\u2713", "right, after work"),
        ("47+85 is 131", "\u2717", "wrong, at once: the sum is 132"),
        ("\nWhat is 1+1?", "\u2717", "no answer: it goes on with questions"),
        ("132", "\u2717", "not an answer"),
    ],
)
def test_an_answer_is_judged_by_the_rule(text: str, mark: str, words: str, run_node):
    body = """const ids = worlds.encode(data, { begin: false });
      return ask.judgement([...ids, worlds.END], "What is 47+85?");"""
    assert run_node(body, text) == {"mark": mark, "words": words}


# Training in a page

GIVEN = {"questions": 6, "answers": 4, "rate": 2e-4, "from": 2, "exam": 20}
RUN = """const weights = engine.readWeights(arrived.get("sft"));
      const begin = (seed, question) => new training.Run({
        ...data, weights, seed, question: question ?? "What is 2468+1384?" });
"""


def test_a_run_is_a_pure_function_of_its_seed(run_node):
    """And a worker, which is given the text of the scripts, does just the same."""
    body = (
        RUN
        + """const options = { ...data, weights, question: "What is 47+85?" };
      const told = (answer, seed) => {
        const exam = answer({ call: "begin", given: { ...options, seed } });
        const updates = [0, 1].map(() => answer({ call: "update" }));
        const end = answer({ call: "finish", given: { exam: 20 } });
        return [exam, updates, end, list(answer({ call: "weights" })).slice(0, 9)];
      };
      const text = `const engine = (${live.makeEngine})();
        const worlds = (${live.makeWorlds})(engine);
        (${live.makeTraining})(engine, worlds).serve()`;
      const inWorker = require("vm").runInNewContext(text);
      const here = () => training.serve();
      return [told(here(), 1), told(inWorker, 1), told(here(), 2)];"""
    )
    here, worker, other = run_node(body, GIVEN)
    assert here == worker
    assert here[0] == other[0]  # the exam is the same, whatever the seed
    assert here[1:] != other[1:]


def test_a_run_trains_on_no_held_out_question_and_not_on_the_reader_s(run_node):
    """Numbers have two digits at least, and the reader's sum is left out when drawn."""
    body = (
        RUN
        + """const first = begin(3).draw(300);
      return [first, begin(3, first[5]).draw(299)];"""
    )
    first, without = run_node(body, GIVEN)
    pairs = [arithmetic.numbers(question) for question in first]
    assert not any(arithmetic.is_held_out(*pair) for pair in pairs)
    assert {len(str(n)) for pair in pairs for n in pair} == {2, 3, 4}
    assert without == [question for question in first if question != first[5]][:299]


def test_what_a_run_says_of_itself_is_so(run_node):
    """A point, a group and the probability of work, against what can be worked out."""
    body = (
        RUN
        + """const run = begin(4);
      const kept = run.uniform;
      const drawn = [];
      run.uniform = () => { const u = kept(); drawn.push(u); return u; };
      const { point, group } = run.update();
      let at = 0;
      const same = begin(4);
      same.uniform = () => drawn[at++];
      const asked = same.draw(data.questions);
      return { point, group, asked, judged: same.ask(asked, data.answers).judged };"""
    )
    found = run_node(body, GIVEN)
    texts = [one["text"] for one in found["judged"]]
    prompts = [question for question in found["asked"] for _ in range(4)]
    right = arithmetic.accuracy_reward(prompts, texts)
    work = [arithmetic.shows_work(text) for text in texts]
    point = found["point"]
    assert point["right"] == pytest.approx(sum(right) / len(right))
    assert point["work"] == pytest.approx(sum(work) / len(work))
    lengths = [one["length"] for one in found["judged"]]
    assert point["length"] == pytest.approx(sum(lengths) / len(lengths))
    prompt = torch.tensor(tokenizer.encode(TOKENS, ["What is 2468+1384?"]))
    shares = rounded("sft")(input_ids=prompt).logits[0, -1].softmax(-1).tolist()
    think = shares[TOKENS.convert_tokens_to_ids("<think>")]
    assert point["think"] == pytest.approx(think, abs=1e-4)
    group = found["group"]
    k = found["asked"].index(group["question"])
    assert [one["text"] for one in group["answers"]] == texts[4 * k : 4 * k + 4]
    scores = double(right[4 * k : 4 * k + 4])
    assert [one["reward"] for one in group["answers"]] == scores.tolist()
    expected = group_relative(scores, torch.zeros(4, dtype=torch.long))
    assert_same([one["advantage"] for one in group["answers"]], expected)
    spreads = torch.tensor(right).view(-1, 4).mean(1)
    assert float(spreads[k] * (1 - spreads[k])) == pytest.approx(
        float((spreads * (1 - spreads)).max())
    )


def test_the_recipes_do_what_their_names_say(run_node):
    """To work and not to sums; to work and away from sums; away from answers."""
    body = (
        RUN
        + """return train.RECIPES.map((recipe) => {
        const run = new training.Run({
          ...recipe, from: 2, weights, seed: 1, question: "What is 2468+1384?" });
        const before = run.examine(200);
        for (let i = 0; i < recipe.updates; i++) run.update();
        return [recipe.name, before, run.examine(200), run.think()];
      });"""
    )
    turns, worse, forgets = run_node(body, GIVEN)
    assert "turns to its work" in turns[0]
    assert turns[1]["work"] < 0.4
    assert turns[2]["work"] > 0.8
    assert abs(turns[2]["right"] - turns[1]["right"]) < 0.1
    assert turns[3] > 0.8
    assert "worse at sums" in worse[0]
    assert worse[2]["work"] > 0.6
    assert worse[2]["right"] < worse[1]["right"] - 0.1
    assert "forgets how to add" in forgets[0]
    assert forgets[2]["right"] < 0.1


def test_the_band_is_that_of_the_stored_runs(run_node, folder: Path):
    live_weights().write_runs(folder)
    body = """require(data);
      return arrived.get("runs_thinking");"""
    found = run_node(body, str(folder / "runs_thinking.js"))
    runs = results.load("thinking")["grpo"]
    assert len(runs) == 5
    assert set(found) == {"work", "right", "length"}
    for key, band in found.items():
        for n, (low, high) in enumerate(band):
            values = [run["updates"][n][key] for run in runs]
            assert [low, high] == [min(values), max(values)]
        assert len(band) == 24 > max(12, 8)


def test_a_drawing_and_an_outcome_are_said_in_words(run_node):
    body = """const curve = { title: "right answers", digits: 2 };
      const exams = [{ work: 0.3, right: 0.6 }, { n: 400, work: 0.9, right: 0.62 }];
      return [
        train.described(curve, [], [[0, 1]]),
        train.described(curve, [0.5], undefined),
        train.described(curve, [0.5, 0.25], [[0, 1], [0.125, 0.375]]),
        train.outcome(...exams, 12)];"""
    empty, first, two, end = run_node(body, None)
    assert empty == "An empty drawing for: right answers."
    assert first == "Against updates, right answers: 0.50 before the first."
    assert two.startswith(first[:-1] + ", 0.25 after 1. In the five stored runs")
    assert two.endswith("0.13 to 0.38.")
    assert "400 held-out sums of one to four digits, before and after 12" in end
    assert end.endswith("with work 0.30 to 0.90, right 0.60 to 0.62.")


# The robot in a page


def follow(baseline: torch.Tensor, episodes: Any, ahead: torch.Tensor) -> torch.Tensor:
    """The baseline's step of the chapter on the policy gradient."""
    seen = episodes.observations[:, :-1][episodes.mask]
    visits = torch.zeros_like(baseline)
    visits = visits.index_add(0, seen, torch.ones(len(seen)).double())
    error = torch.zeros_like(baseline).index_add(0, seen, ahead[episodes.mask])
    return baseline + 0.5 * error / visits.clamp(min=1)


@pytest.mark.parametrize("follows", [True, False])
def test_the_robot_of_a_page_learns_by_the_chapter_s_loop(follows: bool, run_node):
    """One update from the same draws, with a baseline that is not zero."""
    starts = [state for state in range(100) if not MAZE.terminal[state]]
    policy = robot(some_logits().detach())
    episodes = rollout(
        MazeVectorEnv(96, size=5, max_episode_steps=100),
        policy,
        episodes=96,
        discount=0.95,
        generator=seeded(19),
        starts=starts,
    )
    draw_seed = int(torch.randint(2**31 - 1, (1, 2), generator=seeded(19))[0, 0])
    drawn = uniforms(96, 100, draw_seed)
    baseline = torch.rand(100, generator=seeded(22), dtype=torch.float64) - 0.5
    last = episodes.observations.gather(1, episodes.lengths[:, None])[:, 0]
    assert 0 < int((episodes.lengths == 100).sum()) < 96
    returns = returns_to_go(episodes, final_values=baseline[last].float()).double()
    ahead = returns - baseline[episodes.observations[:, :-1]]
    reinforce_update(
        policy, torch.optim.Adam(policy.parameters(), lr=0.1), episodes, ahead
    )
    body = """const one = new robot.Learning({
        rate: 0.1, baseline: data.follows, seed: 1 });
      one.policy.weights.set(data.logits);
      one.baseline = Float64Array.from(data.baseline);
      one.uniform = given(data.drawn);
      one.update();
      return { starts: one.starts, logits: list(one.policy.weights),
        baseline: list(one.baseline), value: one.average(one.values()) };"""
    data = {"logits": some_logits().flatten().tolist(), "drawn": drawn}
    data |= {"baseline": baseline.tolist()}
    found = run_node(body, data | {"follows": follows})
    assert found["starts"] == starts
    assert_same(found["logits"], policy.logits.detach().flatten(), 1e-5)
    after = follow(baseline, episodes, ahead) if follows else baseline
    assert_same(found["baseline"], after, 1e-6)
    probabilities = double(found["logits"]).view(100, 3).softmax(-1)
    values = policy_evaluation(MAZE, probabilities, discount=0.95)
    assert found["value"] == pytest.approx(float(values[starts].mean()))


def test_the_robot_of_a_page_finds_the_way_unless_its_step_is_too_large(run_node):
    """What the page counts is what dynamic programming says of the same table."""
    body = """return [0.1, 3].map((rate) => {
        const one = new robot.Learning({ rate, baseline: true, seed: 1 });
        for (let i = 0; i < 100; i++) one.update();
        const { states, arrives } = one.way();
        return [one.average(one.values()), one.average(one.best), one.shortest(),
          arrives, states.length - 1, list(one.policy.weights)];
      });"""
    good, wrecked = run_node(body, None)
    inside = ~MAZE.terminal
    best = value_iteration(MAZE, discount=0.95)
    for value, top, shortest, arrives, moves, logits in (good, wrecked):
        assert top == pytest.approx(float(best[inside].mean()))
        table = double(logits).view(100, 3)
        of_it = policy_evaluation(MAZE, table.softmax(-1), discount=0.95)
        assert value == pytest.approx(float(of_it[inside].mean()))
        chosen = torch.nn.functional.one_hot(table.argmax(-1), 3).double()
        values = policy_evaluation(MAZE, chosen, discount=0.95)
        close = torch.isclose(values, best, rtol=0, atol=1e-6)
        assert shortest == int(close[inside].sum())
        assert arrives == bool(values[1] > 0)
        assert not arrives or moves >= int(MAZE.fewest_moves[1])
    assert good[2] == 96
    assert good[4] == int(MAZE.fewest_moves[1])
    assert wrecked[2] < 48


def test_a_reader_drives_as_the_environment_moves(run_node):
    """Random moves: states, rewards and walls, and the fewest moves."""
    moves = torch.randint(3, (400,), generator=seeded(23)).tolist()
    body = """const one = new drive.Drive();
      data.forEach((move) => one.go(move));
      return { steps: one.steps, sum: one.earned(),
        fewest: one.fewest(), met: list(one.met), shown: one.walls(true).length,
        all: one.walls(false).length, told: drive.told(one.steps[0], false) };"""
    found = run_node(body, moves)
    state, rewards, met = 1, [], set()
    for move, step in zip(moves, found["steps"], strict=True):
        wall = move == 0 and bool(MAZE.walls.flatten()[state])
        met |= {state} if wall else set()
        rewards.append(float(MAZE.rewards[state, move]))
        state = int(MAZE.next_state[state, move])
        assert [step["state"], step["wall"]] == [state, wall]
        assert step["reward"] == pytest.approx(rewards[-1])
    assert found["sum"] == pytest.approx(sum(rewards))
    assert found["fewest"] == int(MAZE.fewest_moves[1])
    assert set(found["met"]) == met
    assert found["shown"] == len(met) < found["all"] == int(MAZE.walls.sum())
    assert found["told"].startswith(("forward: ", "left turn: ", "right turn: "))


def test_at_the_exit_a_drive_is_over(run_node):
    body = """const one = new drive.Drive();
      const { best, maze } = new robot.Learning({ rate: 1, baseline: true, seed: 1 });
      while (!one.over) {
        const q = worlds.actionValues(maze, best, 0.95).slice(3 * one.state);
        one.go(q.slice(0, 3).indexOf(Math.max(...q.slice(0, 3))));
      }
      one.go(0);
      return [one.steps.length, one.fewest(), one.steps.at(-1).reward];"""
    steps, fewest, last = run_node(body, None)
    assert steps == fewest
    assert last == pytest.approx(0.99)
