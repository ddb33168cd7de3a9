"""The words that a reader searches for stand where they are taught."""

import pytest
import yaml
from gate import ROOT
from notebook_rules import load, source

TERMS = yaml.safe_load((ROOT / "book" / "terms.yml").read_text(encoding="utf-8"))
GLOSSARY = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("query", "chapter"),
    [
        ("PPO", "ppo"),
        ("GAE", "critic"),
        ("KL", "policy_gradient"),
        ("advantage", "values"),
        ("reward hacking", "rlhf"),
        ("importance sampling", "trpo"),
        ("k3", "rlhf"),
    ],
)
def test_a_term_belongs_to_the_chapter_that_teaches_it(query, chapter):
    assert [name for name, terms in TERMS.items() if query in terms] == [chapter]


@pytest.mark.parametrize("chapter", TERMS)
def test_a_chapter_uses_the_words_by_which_it_is_found(chapter):
    cells = load(ROOT / "book" / f"{chapter}.ipynb")["cells"]
    prose = [source(cell) for cell in cells if cell["cell_type"] == "markdown"]
    text = " ".join(" ".join(prose).lower().split())
    assert [term for term in TERMS[chapter] if term.lower() not in text] == []


def test_no_term_belongs_to_two_chapters():
    terms = [term for chapter in TERMS.values() for term in chapter]
    assert len(terms) == len(set(terms))


@pytest.mark.parametrize(
    "term",
    [
        *("TRPO", "PPO", "GRPO", "GAE", "RLHF", "DPO", "DAPO", "GSPO", "CISPO", "RLOO"),
        *("nat", "Markov property", "on-policy", "off-policy", "importance sampling"),
        *("exploration", "verifiable reward", "reward hacking"),
    ],
)
def test_the_glossary_has_the_words_of_the_field(term):
    assert f"\n{term}\n" in GLOSSARY
