import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rl_notes.language.arithmetic import (
    documents,
    is_right,
    question_of,
    questions,
    supervised_examples,
    worked_answer,
)
from rl_notes.language.tokenizer import (
    CHARACTERS,
    CONTEXT,
    PIECES,
    VOCABULARY,
    answer_text,
    answer_texts,
    build,
    encode,
)
from rl_notes.trajectories import Trajectories

FIXED = settings(derandomize=True, deadline=None, max_examples=300)
TEXTS = st.lists(st.sampled_from([*PIECES, *CHARACTERS]), max_size=40).map("".join)
QUESTION = "What is 47+85?"
WORKED = "<think>7+5=12,4+8+1=13</think>47+85 is 132"


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture(scope="module", params=["built", "loaded"])
def tokenizer(request, built, tmp_path_factory):
    """The tokenizer as made, and as a stranger loads it."""
    if request.param == "built":
        return built
    folder = tmp_path_factory.mktemp("tokenizer")
    built.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def task_texts():
    generator = torch.Generator().manual_seed(0)
    examples = supervised_examples(500, worked=0.5, generator=generator)
    return [
        *questions(200, held_out=True, generator=generator),
        *(text for example in examples for text in example),
        *(prompt + completion for prompt, completion in examples),
        *documents(500, generator=generator),
    ]


def test_the_vocabulary(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == tokenizer.vocab_size == len(VOCABULARY) == 22
    assert tokenizer.convert_ids_to_tokens(list(range(22))) == list(VOCABULARY)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 0)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<bos>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<eos>", 2)
    assert tokenizer.unk_token is None
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2]


def test_the_tokens_of_an_answer_in_full(tokenizer):
    (ids,) = encode(tokenizer, [QUESTION + WORKED])
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<bos>", "What is ", "4", "7", "+", "8", "5", "?"),
        *("<think>", "7", "+", "5", "=", "1", "2", ","),
        *("4", "+", "8", "+", "1", "=", "1", "3", "</think>"),
        *("4", "7", "+", "8", "5", " is ", "1", "3", "2"),
    ]


def test_texts_of_the_task_come_back(tokenizer):
    for text in task_texts():
        ids = tokenizer.encode(text)
        assert ids[0] == tokenizer.bos_token_id
        assert not set(ids[1:]) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids) == "<bos>" + text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer(text)["input_ids"] == ids == encode(tokenizer, [text])[0]
        bare = tokenizer.encode(text, add_special_tokens=False)
        assert bare == ids[1:] == encode(tokenizer, [text], begin=False)[0]
        assert tokenizer.decode(bare) == text


@FIXED
@given(text=TEXTS)
def test_any_text_of_the_alphabet_comes_back(built, text):
    (ids,) = encode(built, [text])
    assert built.decode(ids, skip_special_tokens=True) == text
    (bare,) = encode(built, [text], begin=False)
    assert [built.bos_token_id, *bare] == ids
    assert built.decode(bare) == text


def test_prompt_and_answer_join_as_their_text_does(tokenizer):
    generator = torch.Generator().manual_seed(1)
    for prompt, answer in supervised_examples(300, worked=0.5, generator=generator):
        (head,), (tail,) = (
            encode(tokenizer, [prompt]),
            encode(tokenizer, [answer], begin=False),
        )
        assert head + tail == encode(tokenizer, [prompt + answer])[0]


def test_rows_are_independent_and_in_order(tokenizer):
    texts = task_texts()[:50]
    assert encode(tokenizer, texts) == [encode(tokenizer, [text])[0] for text in texts]
    assert encode(tokenizer, []) == []
    assert encode(tokenizer, ["", "1"]) == [[1], [1, VOCABULARY.index("1")]]


def test_batches_are_padded_on_the_right(tokenizer):
    batch = tokenizer(["1", QUESTION], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0].tolist() == [1, VOCABULARY.index("1"), *[0] * 6]
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 8]
    kept = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert kept == ["1", QUESTION]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "What is 4 + 8?",
            "What is  4+8?",
            "what is 4+8?",
            "Hello",
            " ",
            "4-8",
            "\u0664",
        ),
        *("What is4+8?", "1 is", "is 1", "<think", "think>", "<b>", "4\t8", "4\r\n8"),
        *("<pad>", "<bos>1", "1<eos>", "\u2212", "\ud800", "4\x008", "\uff11"),
    ],
    ids=ascii,
)
def test_what_the_vocabulary_lacks_is_refused(tokenizer, text):
    for begin in (True, False):
        with pytest.raises(ValueError, match="The vocabulary has no"):
            encode(tokenizer, [QUESTION, text], begin=begin)


@pytest.mark.parametrize(
    "text", ["4 8", "Hello", "\u0664", "4\r\n8", "1 is"], ids=ascii
)
def test_the_plain_tokenizer_loses_nothing_in_silence(tokenizer, text):
    with pytest.raises(Exception, match="vocabulary"):
        tokenizer(text)


def test_the_message_names_what_is_missing(tokenizer):
    with pytest.raises(ValueError, match=r"has no '-', found in 'What is 47-85\?'"):
        encode(tokenizer, ["What is 47-85?"])
    with pytest.raises(ValueError, match=r"has no '\\u0664', found in"):
        encode(tokenizer, ["What is \u0664+5?"])
    with pytest.raises(ValueError, match="a list of texts, not one"):
        encode(tokenizer, QUESTION)


def test_everything_fits_the_context(tokenizer):
    assert tokenizer.model_max_length == CONTEXT == 128
    longest = question_of(9999, 9999)
    (ids,) = encode(tokenizer, [longest + worked_answer(longest)])
    assert len(ids) + 1 == 63  # and the end token
    quiz = "\n".join(["What is 9999+9999?9999+9999 is 19998"] * 4)
    assert len(encode(tokenizer, [quiz])[0]) + 1 == 109


def test_an_answer_ends_at_the_first_end_token(tokenizer):
    pad, bos, eos = 0, 1, 2
    (ids,) = encode(tokenizer, [WORKED], begin=False)
    for tail in ([], [eos], [eos, eos], [eos, pad, pad], [eos, *ids, eos]):
        assert answer_text(tokenizer, [*ids, *tail]) == WORKED
    assert answer_text(tokenizer, []) == answer_text(tokenizer, [eos, *ids]) == ""
    assert is_right(answer_text(tokenizer, [*ids, eos]), QUESTION)
    for special in (pad, bos):
        sampled = [*ids[:-1], special, ids[-1], eos]
        text = answer_text(tokenizer, sampled)
        assert text == f"{WORKED[:-1]}{VOCABULARY[special]}{WORKED[-1]}"
        assert not is_right(text, QUESTION)
        # The usual way of decoding would have called this right.
        assert tokenizer.decode(sampled, skip_special_tokens=True) == WORKED
    assert answer_text(tokenizer, [*ids, pad]) == WORKED + "<pad>"


def test_the_texts_of_a_batch_are_those_of_its_answers(tokenizer):
    """The answer alone, up to its end token, wherever its prompt ends."""
    eos, worked = tokenizer.eos_token_id, tokenizer.encode(WORKED)[1:]
    rows = [([1, *worked, eos], 1), ([1, 5, 6, 7, 8, eos], 3)]
    longest = max(len(ids) for ids, _ in rows)
    text = torch.zeros(2, longest, dtype=torch.long)
    mask = torch.zeros(2, longest - 1, dtype=torch.bool)
    for row, (ids, prompt) in enumerate(rows):
        text[row, : len(ids)] = torch.tensor(ids)
        mask[row, prompt - 1 : len(ids) - 1] = True
    zeros = torch.zeros(mask.shape)
    batch = Trajectories(
        actions=text[:, 1:],
        logprobs=zeros,
        rewards=zeros,
        discounts=torch.where(mask, 0.0, 1.0),
        mask=mask,
        groups=torch.arange(2),
        observations=text,
    )
    assert answer_texts(tokenizer, batch) == [WORKED, tokenizer.decode([7, 8])]
