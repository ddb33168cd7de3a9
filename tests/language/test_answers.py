"""How the little model is asked: rows, texts and prompts that belong together."""

import pytest
import torch
from batches import seeded
from gate import ROOT, book_notebooks
from notebook_rules import code_cells, load, source

from rl_notes.language import tokenizer
from rl_notes.language.answers import answer
from rl_notes.language.generation import generate
from rl_notes.language.models import load as load_model
from rl_notes.policies import TransformerPolicy

ASKED = ["What is 47+85?", "What is 7+8?", "What is 968+57?"]


@pytest.fixture(scope="module")
def policy():
    return TransformerPolicy(load_model("sft")[0])


def test_it_is_generate_with_words_at_both_ends(policy):
    found = answer(policy, ASKED, group_size=4, generator=seeded(0))
    tokens = tokenizer.build()
    expected = generate(
        policy,
        tokenizer.encode(tokens, ASKED),
        group_size=4,
        max_new_tokens=64,
        generator=seeded(0),
    )
    for name in ("observations", "logprobs", "mask", "groups"):
        ours = getattr(found.trajectories, name)
        torch.testing.assert_close(ours, getattr(expected, name), rtol=0, atol=0)
    assert found.prompts == [q for q in ASKED for _ in range(4)]
    by_hand = [
        tokens.decode(ids[mask]).removesuffix(tokens.eos_token)
        for ids, mask in zip(expected.actions, expected.mask, strict=True)
    ]
    assert found.texts == by_hand
    assert "47+85 is" in found.texts[0]


def test_an_answer_that_was_begun_is_gone_on_with(policy):
    begun = ["What is 47+85?47+85 is 1"]
    batch, prompts, texts = answer(policy, begun, generator=seeded(0))
    assert prompts == begun
    assert all(text.isdigit() for text in texts)
    assert int(batch.mask.sum()) == len(texts[0]) + 1  # and the end token


def test_an_answer_is_no_longer_than_asked(policy):
    batch, _, texts = answer(policy, ASKED, max_new_tokens=3, generator=seeded(0))
    assert batch.mask.sum(1).tolist() == [3, 3, 3]
    assert all(texts)


def test_one_chapter_shows_how_and_the_others_call_it():
    shown = {
        path.stem
        for path in book_notebooks()
        for cell in code_cells(load(path))
        if "tokenizer.answer_text(" in source(cell)
    }
    assert shown == {"llm_as_policy"}
    library = (ROOT / "rl_notes" / "language").glob("*.py")
    callers = {
        path.stem
        for path in library
        if "answer_texts(" in path.read_text(encoding="utf-8")
    }
    assert callers == {"answers", "tokenizer"}
