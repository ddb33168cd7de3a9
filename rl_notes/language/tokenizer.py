"""The tokenizer of the little language model: characters, and a few longer pieces.

22 tokens: three special ones, the digits, five other characters, and four pieces that
always come whole. It is an ordinary fast tokenizer of `transformers`, made here from
nothing; saved, it is loaded by `AutoTokenizer` as any other.
"""

import itertools
import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rl_notes.trajectories import Trajectories

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
PIECES = ("What is ", " is ", "<think>", "</think>")
CHARACTERS = "0123456789+=,?\n"
VOCABULARY = (PAD, BOS, EOS, *CHARACTERS, *PIECES)
# Tokens. The longest answered question has 63, the longest document of the corpus 109.
CONTEXT = 128
_PIECE = re.compile("|".join(map(re.escape, (*PIECES, *CHARACTERS))))


def build() -> PreTrainedTokenizerFast:
    r"""Make the tokenizer.

    It adds the begin token itself, and no end token: an answer ends where a model says
    so. `decode(encode(text), skip_special_tokens=True)` is the text again, to the
    letter. A text that the vocabulary cannot hold is refused and never shortened: here
    by an exception of `tokenizers`, in `encode` by a ValueError that says what to do.
    """
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    # A word is a piece or else one character. Without a token for the unknown, an
    # unknown character is an error (a BPE model would drop it in silence).
    model = Tokenizer(WordLevel(ids))
    words = "|".join((*PIECES, r"[\s\S]"))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(words), "isolated")
    model.decoder = decoders.Fuse()
    model.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=model,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, begin: bool = True
) -> list[list[int]]:
    """Turn texts of the little world into token ids, without padding.

    Args:
        tokenizer: From `build`, or loaded with the little model.
        texts: Prompts, or answers, or whole documents.
        begin: Put the begin token first. False for an answer: the ids of a prompt and
            of its answer, joined, are those of the joined text.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list of texts, not one: [{texts!a}].")
    for text in texts:
        unknown = _PIECE.sub("", text)
        if unknown:
            raise ValueError(
                f"The vocabulary has no {unknown[:20]!a}, found in {text[:80]!a}. The "
                'little model reads and writes as in "What is 47+85?47+85 is 132".'
            )
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=begin)["input_ids"]
    return ids


def answer_text(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    *,
    end_tokens: Sequence[int] = (),
) -> str:
    """Turn sampled token ids into the text that the verifier sees.

    It goes up to the token that ended the answer. That is the tokenizer's end token or
    one of `end_tokens`, the model's `generation_config.eos_token_id`; or, in the last
    place, a special token that a tokenizer has in addition to the usual ones, as
    "<end_of_turn>" and "<|im_end|>" are. Other special tokens stay visible: a model
    that writes "<pad>" into its answer has not answered, and `skip_special_tokens`
    would hide it.
    """
    sampled = list(ids)
    ends = {tokenizer.eos_token_id, *end_tokens}
    sampled = list(itertools.takewhile(lambda token: token not in ends, sampled))
    usual = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    if sampled and sampled[-1] in set(tokenizer.all_special_ids) - usual:
        sampled = sampled[:-1]
    return str(tokenizer.decode(sampled, skip_special_tokens=False))


def answer_texts(
    tokenizer: PreTrainedTokenizerBase,
    trajectories: Trajectories,
    *,
    end_tokens: Sequence[int] = (),
) -> list[str]:
    """What was sampled in each row, as `answer_text`; the prompt is no part of it."""
    rows = zip(trajectories.actions, trajectories.mask, strict=True)
    return [
        answer_text(tokenizer, ids[mask].tolist(), end_tokens=end_tokens)
        for ids, mask in rows
    ]
