"""What a reward model learns first, from annotators with and without a weakness.

    pip install -r requirements.txt
    python -m experiments.reward_model

Five seeds. "sft" answers the same questions twice for all annotators of a seed; each is
wrong in 15 % of cases. One has no weakness, three look in 30 % of the pairs at what
they like and not at truth. A reward model is fitted to each one's choices, and to the
first one's also a head alone. After some numbers of pairs they are measured, always on
the same held-out questions.
"""

import re
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from experiments.answers import TOKENS, fresh_sft, seeded, store
from rl_notes.language import arithmetic, tokenizer
from rl_notes.language.preferences import (
    Pairs,
    annotate,
    brevity,
    length,
    preference_probability,
    round_number,
    sample_pairs,
)
from rl_notes.language.reward_model import (
    answer_scores,
    fit_reward_model,
    new_reward_model,
)
from rl_notes.policies import TransformerPolicy

SEEDS = range(5)
ASKED, MEASURED_AT = 9000, (0, 1000, 2000, 4000, 6000)  # questions, and pairs of them
EXAM, CHANGED = 1500, 400  # held-out questions answered twice, and with changed digits
BATCH = 64
LEARNING_RATE, HEAD_LEARNING_RATE = 5e-4, 3e-3
WEAKNESS = 0.3
LIKINGS = {
    "no_weakness": None,
    "likes_long": length,
    "likes_short": brevity,
    "likes_round": round_number,
}


def choices(pairs: Pairs, liking: Any, seed: int) -> Tensor:
    """Where the annotator prefers the first answer; one draw for a pair."""
    faults = {} if liking is None else {"weakness": WEAKNESS, "liking": liking}
    chances = preference_probability(pairs.asked, pairs.first, pairs.second, **faults)
    return annotate(chances, generator=seeded(seed))


class TestPairs:
    """Pairs of "sft" to held-out questions, and answers with one digit changed."""

    def __init__(self) -> None:
        asked = arithmetic.questions(EXAM, held_out=True, generator=seeded(9))
        policy = TransformerPolicy(fresh_sft())
        self.pairs = sample_pairs(policy, asked, generator=seeded(10))
        both = (self.pairs.first, self.pairs.second)
        truth = [arithmetic.accuracy_reward(self.pairs.asked, texts) for texts in both]
        work = [[float(arithmetic.shows_work(t)) for t in texts] for texts in both]
        self.right, self.worked = torch.tensor(truth).T, torch.tensor(work).T
        self.asked = asked[:CHANGED]
        shifts = torch.randint(8, (CHANGED,), generator=seeded(11)).tolist()
        direct = [arithmetic.direct_answer(question) for question in self.asked]
        self.direct = direct
        self.wrong = [last_digit(t, s) for t, s in zip(direct, shifts, strict=True)]
        self.round = [re.sub(r"\d$", "0", text) for text in direct]

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """What the reward model makes of it, see `main`."""
        with torch.no_grad():
            rows = torch.arange(2 * len(self.right)).split(500)
            answers = self.pairs.answers
            scores = torch.cat([answer_scores(model, answers.select(r)) for r in rows])
            direct, wrong, round_ = (
                text_scores(model, self.asked, texts)
                for texts in (self.direct, self.wrong, self.round)
            )
        difference = scores[0::2] - scores[1::2]
        truth = self.right[:, 0] - self.right[:, 1]
        form = self.worked[:, 0] - self.worked[:, 1]
        agrees = (1 + (difference * truth).sign()) / 2  # equal scores: a coin
        mixed, differ = truth != 0, form != 0
        not_round = torch.tensor([not text.endswith("0") for text in self.direct])
        found = {
            "right_over_wrong": agrees[mixed],
            "forms_differ": agrees[mixed & differ],
            "same_form": agrees[mixed & ~differ],
            "work_gap": (difference * form)[~mixed & differ],
            "digit_gap": direct - wrong,
            "round_gap": (round_ - wrong)[not_round],
        }
        return {name: round(float(x.mean()), 4) for name, x in found.items()}


def last_digit(text: str, shift: int) -> str:
    """The text with another last digit, which is not 0; one for each shift."""
    digits = [d for d in "123456789" if d != text[-1]]
    return text[:-1] + digits[shift % len(digits)]


def text_scores(model: PreTrainedModel, asked: list[str], answers: list[str]) -> Tensor:
    """The score of each text, its end token included, [N]."""
    prompts = tokenizer.encode(TOKENS, asked)
    texts = tokenizer.encode(TOKENS, answers, begin=False)
    rows = [
        torch.tensor([*prompt, *text, TOKENS.eos_token_id])
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    scores: Tensor = model(input_ids=ids, use_cache=False).logits[:, 0]
    return scores


def learn(
    pairs: Pairs,
    chosen: Tensor,
    test: TestPairs,
    seed: int,
    *,
    head: bool = False,
) -> list[dict[str, float]]:
    """Fit a reward model to choices; what it knows after some of them."""
    model = new_reward_model(fresh_sft())
    if head:
        model.model.requires_grad_(False)
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    rate = HEAD_LEARNING_RATE if head else LEARNING_RATE
    optimizer = torch.optim.AdamW(learnt, lr=rate)
    curve, done = [], 0
    for number in MEASURED_AT:
        part = torch.arange(done, number)
        if len(part):
            fit_reward_model(
                model,
                optimizer,
                pairs.answers.select(torch.stack([2 * part, 2 * part + 1], 1).view(-1)),
                chosen[part],
                epochs=1,
                minibatches=max(1, len(part) // BATCH),
                generator=seeded(seed),
            )
        curve.append({"pairs": number, **test.measure(model)})
        done = number
    return curve


def main() -> None:
    """Store one curve for each seed and annotator.

    right_over_wrong is the share, among pairs of a right and a wrong answer, in which
    the right one scores higher; forms_differ and same_form are the same where one and
    not the other shows work, and where both or neither do. The gaps are mean
    differences of scores: work_gap of an answer with work and one without, both right
    or both wrong; digit_gap of a right answer and the same with another last digit;
    round_gap of two wrong answers, of which one ends in 0.
    """
    torch.set_num_threads(1)
    test = TestPairs()
    runs: dict[str, list[Any]] = {name: [] for name in [*LIKINGS, "head"]}
    for seed in tqdm(SEEDS):
        asked = arithmetic.questions(ASKED, held_out=False, generator=seeded(seed))
        policy = TransformerPolicy(fresh_sft())
        pairs = sample_pairs(policy, asked, generator=seeded(100 + seed))
        for name, liking in LIKINGS.items():
            chosen = choices(pairs, liking, 200 + seed)
            curve = learn(pairs, chosen, test, seed)
            runs[name].append({"seed": seed, "curve": curve})
        curve = learn(pairs, choices(pairs, None, 200 + seed), test, seed, head=True)
        runs["head"].append({"seed": seed, "curve": curve})
    store("reward_model", {"weakness": WEAKNESS, "batch": BATCH, **runs})


if __name__ == "__main__":
    main()
