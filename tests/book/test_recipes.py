"""Numbers in the text that stand for numbers in the code."""

from gate import ROOT
from notebook_rules import load, source

from rl_notes.language import curriculum, training


def prose(name: str) -> str:
    cells = load(ROOT / "book" / f"{name}.ipynb")["cells"]
    return " ".join(" ".join(map(source, cells)).split())


def test_the_text_tells_how_long_the_shipped_models_were_trained():
    steps = f"took {training.PRETRAINING_STEPS} steps of 128 documents"
    assert steps in prose("three_steps")
    updates = f"for {sum(curriculum.UPDATES):,} updates"
    assert updates in prose("three_steps")
