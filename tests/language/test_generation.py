from collections import Counter

import pytest
import torch
from batches import seeded
from language_models import exact, fresh, tiny

from rl_notes.divergences import sample
from rl_notes.language.generation import generate
from rl_notes.policies import TransformerPolicy, action_logprobs

END = 2  # the end token of every model here
PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11], [1], [1, 5, 6, 4, 4, 4, 4, 4, 12, 3]]


@pytest.fixture(scope="module")
def little():
    return TransformerPolicy(fresh(), temperature=0.7)


@pytest.fixture(scope="module")
def precise():
    """In float64: equal means equal, whatever the order of the sums."""
    return TransformerPolicy(exact(fresh()), temperature=0.7)


def answer(policy, prompts=PROMPTS, *, group_size=1, limit=24, seed=0):
    return generate(
        policy,
        prompts,
        group_size=group_size,
        max_new_tokens=limit,
        generator=seeded(seed),
    )


def answers(batch):
    """The sampled tokens of every row."""
    return [
        row[mask].tolist() for row, mask in zip(batch.actions, batch.mask, strict=True)
    ]


def one_by_one(policy, prompts, *, limit, seed):
    """What `generate` must do, slowly: no batch, no cache, no row ever leaves."""
    generator = seeded(seed)
    uniforms = torch.stack(
        [
            torch.rand(len(prompts), generator=generator, dtype=torch.float64)
            for _ in range(limit)
        ]
    )
    tokens, logprobs = [], []
    for row, prompt in enumerate(prompts):
        prefix, scores = list(prompt), []
        for uniform in uniforms[:, row]:
            with torch.no_grad():
                logits = policy(torch.tensor([prefix]))[:, -1]
            token = int(sample(logits, uniform[None]))
            prefix.append(token)
            scores.append(float(logits.log_softmax(-1)[0, token]))
            if token == END:
                break
        tokens.append(prefix[len(prompt) :])
        logprobs.append(torch.tensor(scores, dtype=torch.float64))
    return tokens, logprobs


@pytest.mark.parametrize("group_size", [1, 3])
def test_logprobs_equal_those_of_a_fresh_forward_pass(little, precise, group_size):
    for policy, tolerance in ((little, 1e-4), (precise, 1e-8)):
        batch = answer(policy, PROMPTS * 8, group_size=group_size)
        with torch.no_grad():
            again = action_logprobs(policy, batch)
        assert batch.logprobs.dtype == again.dtype
        assert not batch.logprobs.requires_grad
        assert batch.logprobs.min() < -3  # not all certain
        torch.testing.assert_close(batch.logprobs, again, rtol=0, atol=tolerance)


def test_logprobs_are_those_of_the_temperature_that_was_sampled_at(precise):
    hotter = TransformerPolicy(precise.model, temperature=1.3)
    batch = answer(precise)
    with torch.no_grad():
        difference = action_logprobs(hotter, batch) - batch.logprobs
    assert difference.abs().max() > 0.1


def test_layout_of_the_rows(little):
    limit, group_size = 24, 6
    batch = answer(little, group_size=group_size, limit=limit)
    rows = len(PROMPTS) * group_size
    assert batch.groups.tolist() == [row // group_size for row in range(rows)]
    assert torch.equal(batch.observations[:, 1:], batch.actions)
    assert torch.equal(batch.rewards, torch.zeros_like(batch.rewards))
    kinds = {"ended": 0, "cut": 0}
    for row in range(rows):
        prompt = PROMPTS[row // group_size]
        text = batch.observations[row].tolist()
        assert text[: len(prompt)] == prompt
        written = text[len(prompt) :]
        ended = END in written
        length = written.index(END) + 1 if ended else limit
        kinds["ended" if ended else "cut"] += 1
        before = len(prompt) - 1
        after = batch.mask.shape[1] - before - length
        assert batch.mask[row].tolist() == (
            [False] * before + [True] * length + [False] * after
        )
        assert batch.discounts[row].tolist() == (
            [1] * (before + length - 1) + [0] * (1 + after)
        )
        assert written[length:] == [0] * after  # padding, and as much as needed
    assert min(kinds.values()) > 2  # both ways to end were seen
    assert bool(batch.mask[:, -1].any())  # no wider than the longest row


def test_no_answer_is_longer_than_the_limit(little):
    for limit in (1, 2, 7):
        batch = answer(little, PROMPTS * 5, limit=limit)
        lengths = batch.mask.sum(dim=1)
        assert int(lengths.max()) == limit
        cut = torch.tensor([END not in tokens for tokens in answers(batch)])
        assert bool(cut.any())
        assert lengths[cut].tolist() == [limit] * int(cut.sum())
        # The limit is part of the task: nothing comes after it.
        last = batch.lengths[cut] - 1
        assert not bool(batch.discounts[cut, last].any())


def test_batch_equals_row_by_row_without_cache(precise):
    """Rows end at different times: most leave the batch long before the last ends."""
    prompts = [PROMPTS[index % 4] for index in range(40)]
    tokens, logprobs = one_by_one(precise, prompts, limit=30, seed=3)
    batch = answer(precise, prompts, limit=30, seed=3)
    lengths = sorted(map(len, tokens))
    assert lengths[4] < 8  # more than a tenth leaves early, the rest bit by bit
    assert len(set(lengths)) > 12
    assert lengths[-1] == 30
    assert answers(batch) == tokens
    for row, expected in enumerate(logprobs):
        sampled = batch.logprobs[row, batch.mask[row]]
        torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-10)


def test_group_equals_the_prompt_given_as_often(precise):
    grouped = answer(precise, group_size=5)
    repeated = answer(precise, [p for p in PROMPTS for _ in range(5)])
    assert answers(grouped) == answers(repeated)
    assert len({tuple(tokens) for tokens in answers(grouped)[:5]}) > 1
    assert repeated.groups.tolist() == list(range(20))


def test_the_model_is_run_on_each_prefix_once(precise):
    policy, run = TransformerPolicy(precise.model, 0.3), []
    hook = precise.model.register_forward_pre_hook(
        lambda _, __, given: run.append(len(given["input_ids"])), with_kwargs=True
    )
    batch = answer(policy, group_size=8)
    hook.remove()
    rows = list(zip(batch.groups.tolist(), answers(batch), strict=True))
    longest = max(len(tokens) for _, tokens in rows)
    prefixes = [
        {(group, *tokens[:k]) for group, tokens in rows if len(tokens) > k}
        for k in range(longest)
    ]
    *sampling, checked = run
    assert sampling == [len(different) for different in prefixes]
    assert checked == 2  # the shortest prompt and the longest, without a cache
    assert run[0] == 4 < run[1] < run[3]  # they go apart little by little
    assert sum(run) < 0.8 * int(batch.mask.sum())


def test_a_row_does_not_depend_on_the_other_rows(precise):
    """The same draws beside other prompts: of other lengths, ending at other times."""
    mine = [1, 5, 6]
    surroundings = [
        [[1, 7, 8]] * 11,
        [[1, 3 + index] for index in range(11)],
        [[1, *range(3, 20)]] * 11,
        [[1]] * 11,
    ]
    batches = [answer(precise, [mine, *others], seed=5) for others in surroundings]
    lengths = {tuple(batch.mask[1:].sum(dim=1).tolist()) for batch in batches}
    assert len(lengths) == len(batches)  # the others did end at other times
    first = batches[0]
    assert int(first.mask[0].sum()) > 5
    for batch in batches[1:]:
        assert answers(batch)[0] == answers(first)[0]
        torch.testing.assert_close(
            batch.logprobs[0, batch.mask[0]],
            first.logprobs[0, first.mask[0]],
            rtol=0,
            atol=1e-10,
        )


def test_same_seed_same_answers_and_other_seed_others(little):
    assert answers(answer(little)) == answers(answer(little))
    assert answers(answer(little)) != answers(answer(little, seed=1))


def test_a_sampled_pad_token_is_part_of_the_answer():
    batch = answer(TransformerPolicy(tiny()), [[1]], group_size=50, limit=6)
    inside = [tokens for tokens in answers(batch) if 0 in tokens]
    assert len(inside) > 5
    pads = (batch.actions == 0) & batch.mask
    assert int(pads.sum()) == sum(tokens.count(0) for tokens in inside)
    assert bool((batch.logprobs[pads] < 0).all())


def test_frequencies_agree_with_the_exact_distribution():
    """N = 40,000 answers of two tokens. Each frequency within 5 standard deviations."""
    n, prompt = 40_000, [1, 3]
    policy = TransformerPolicy(tiny(), temperature=3.0)
    batch = answer(policy, [prompt], group_size=n, limit=2)
    seen = answers(batch)
    prefixes = torch.tensor([[*prompt, token] for token in range(4)])
    with torch.no_grad():
        probabilities = policy(prefixes).softmax(-1)
    first, second = probabilities[0, len(prompt) - 1], probabilities[:, len(prompt)]
    expected = {(END,): float(first[END])}
    for token in (0, 1, 3):
        for following in range(4):
            chance = float(first[token] * second[token, following])
            expected[token, following] = chance
    assert sum(expected.values()) == pytest.approx(1)
    assert max(expected.values()) < 0.5
    assert min(expected.values()) > 1e-3  # at least 40 of each
    for token in range(4):
        check(float(first[token]), sum(row[0] == token for row in seen) / n, n)
    counts = Counter(map(tuple, seen))
    assert set(counts) <= set(expected)
    for tokens, chance in expected.items():
        check(chance, counts[tokens] / n, n)


def check(chance, frequency, n):
    assert abs(frequency - chance) < 5 * (chance * (1 - chance) / n) ** 0.5


def test_almost_no_temperature_is_the_greedy_answer_of_transformers():
    model = fresh(seed=1)
    batch = answer(TransformerPolicy(model, temperature=1e-6), limit=12)
    for prompt, tokens in zip(PROMPTS, answers(batch), strict=True):
        ids = torch.tensor([prompt])
        greedy = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
        )
        assert tokens == greedy[0, len(prompt) :].tolist()


def test_any_of_several_end_tokens_ends_an_answer():
    model = tiny()
    model.generation_config.eos_token_id = [END, 3]
    batch = answer(TransformerPolicy(model), [[1]], group_size=200, limit=6)
    last = set()
    for tokens in answers(batch):
        assert not {END, 3} & set(tokens[:-1])
        if len(tokens) < 6:
            last.add(tokens[-1])
    assert last == {END, 3}


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "at least one prompt"),
        ([[1, 5], []], {}, "begin token"),
        ([[1]], {"group_size": 0}, "group_size=0 and max_new_tokens=24"),
        ([[1]], {"limit": 0}, "max_new_tokens=0 must be at least 1"),
        ([[1], [1, 22]], {}, "Token 22 is not among the model's 22"),
        ([[1, -1]], {}, "Token -1 is not"),
        ([[1], [1] * 30], {"limit": 100}, "make 130 tokens, .* at most 128"),
    ],
)
def test_what_cannot_be_answered_is_refused(little, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        answer(little, prompts, **options)


def test_the_last_token_may_stand_just_behind_the_context():
    """It is sampled but never read, so the context need not hold it."""
    policy = TransformerPolicy(tiny())
    batch = answer(policy, [[1] * 30], group_size=20, limit=3)
    assert int(batch.mask.sum(dim=1).max()) == 3
    with torch.no_grad():
        again = action_logprobs(policy, batch)
    torch.testing.assert_close(batch.logprobs, again, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="at most 32"):
        answer(policy, [[1] * 30], limit=4)


def test_model_without_an_end_token_is_refused():
    model = tiny()
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="names no end token"):
        answer(TransformerPolicy(model), [[1]])
