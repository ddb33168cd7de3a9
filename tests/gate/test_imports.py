"""What imports what: the updates know no world, and importing changes nothing."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gate import ROOT, built_site, environment

PACKAGE = ROOT / "rl_notes"
MODULES = sorted(PACKAGE.rglob("*.py"))
WORLDS = ("gymnasium", "rl_notes.maze", "rl_notes.language")
# The names that chapters and other people's code import (design, section 4). Add a
# module's names here with the module.
PUBLIC = {
    "rl_notes.maze": ["MazeEnv", "MazeVectorEnv"],
    "rl_notes.dynamic_programming": [
        *("value_iteration", "policy_evaluation", "action_values"),
        *("probabilities_of", "values_of"),
        *("advantages", "occupancy", "expected_return"),
        *("expected_surrogate", "improvement_bound"),
    ],
    "rl_notes.policies": [
        *("TabularPolicy", "MLPPolicy", "TransformerPolicy", "action_logprobs"),
        *("TabularValue", "MLPValue", "TransformerValue", "state_values"),
    ],
    "rl_notes.trajectories": ["Trajectories", "with_scores", "with_kl_penalty"],
    "rl_notes.rollouts": ["rollout"],
    "rl_notes.advantages": [
        *("returns_to_go", "discount_weights", "td_errors", "gae", "normalise"),
        *("explained_variance", "group_relative", "leave_one_out", "has_spread"),
        "per_step",
    ],
    "rl_notes.divergences": ["entropy", "kl_exact", "k1", "k2", "k3", "sample"],
    "rl_notes.device": ["pick_device"],
    "rl_notes.objectives": [
        *("mean_over_tokens", "mean_over_sequences", "sum_over_constant"),
        *("importance_ratio", "surrogate", "clipped_surrogate"),
        *("sequence_ratio", "token_clip", "sequence_clip", "cispo"),
        *("overlong_penalty", "value_loss", "preference_loss", "dpo_loss"),
    ],
    "rl_notes.parallel": ["gather", "gather_steps"],
    "rl_notes.natural_gradient": [
        *("conjugate_gradient", "fisher_vector_product", "natural_step"),
        *("line_search", "trainable", "split", "flat_gradient", "move"),
    ],
    "rl_notes.updates": [
        *("reinforce_update", "trpo_update", "ppo_update", "grpo_update"),
        *("UpdateStats", "TrustRegionStats", "ClipStats", "GroupStats"),
        *("fit_value", "ValueStats"),
    ],
    "rl_notes.language.answers": ["Answers", "answer"],
    "rl_notes.language.arithmetic": [
        *("questions", "question_of", "numbers", "is_held_out", "documents"),
        *("direct_answer", "worked_answer", "supervised_examples", "Example"),
        *("is_right", "follows_form", "shows_work", "asks_again"),
        *("accuracy_reward", "form_reward"),
    ],
    "rl_notes.language.curriculum": [
        *("learn_from_the_rule", "three_lessons", "any_kind"),
        *("mostly_long_with_a_carry", "is_long_with_a_carry", "mostly_got_wrong"),
    ],
    "rl_notes.language.preferences": [
        *("Pairs", "sample_pairs", "preference_probability", "annotate"),
        *("round_number", "length", "brevity"),
    ],
    "rl_notes.language.reward_model": [
        *("new_reward_model", "answer_scores", "fit_reward_model", "reliability"),
    ],
    "rl_notes.language.tokenizer": [
        *("build", "encode", "answer_text", "answer_texts"),
    ],
    "rl_notes.language.training": [
        *("next_token_loss", "pretrain", "fine_tune", "measure", "main"),
        *("learn_preferences", "measure_preferences"),
    ],
    "rl_notes.plotting": [],
    "rl_notes.exercises": [],
    "rl_notes.results": ["load"],
}
SEEDS = {
    *("torch.manual_seed", "torch.random.manual_seed", "torch.cuda.manual_seed_all"),
    *("np.random.seed", "numpy.random.seed", "random.seed", "manual_seed", "seed"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield every module that a source imports, also inside its functions.

    `from a import b` yields `a` and `a.b`, since `b` may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parents if node.level else []), node.module or ""])
            yield base.rstrip(".")
            yield from (f"{base.rstrip('.')}.{alias.name}" for alias in node.names)


def reachable(start: str) -> dict[str, set[str]]:
    """Follow the package's own imports; map each module to what it imports."""
    sources = {module_name(path): path for path in MODULES}
    found: dict[str, set[str]] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found or name not in sources or name == "rl_notes":
            continue
        path = sources[name]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[name] = set(imported(tree, package))
        waiting += found[name]
    return found


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_imports_are_seen_wherever_they_stand():
    source = (
        "import a.b\nfrom .e import f\nfrom . import g\ndef h():\n    from c import d"
    )
    assert set(imported(ast.parse(source), "p.q")) == {
        *("a.b", "c", "c.d", "p.q.e", "p.q.e.f", "p.q", "p.q.g")
    }
    assert "rl_notes.maze.rules" in reachable("rl_notes.maze")
    assert "gymnasium" in reachable("rl_notes.maze")["rl_notes.maze.environment"]


def test_no_import_reachable_from_the_updates_names_a_world():
    found = reachable("rl_notes.updates")
    package = {module_name(path) for path in (PACKAGE / "updates").glob("*.py")}
    assert len(package) > 5
    assert package <= set(found)
    known = {
        f"{module} imports {name}"
        for module, names in found.items()
        for name in names
        if any(name == world or name.startswith(f"{world}.") for world in WORLDS)
    }
    assert known == set()


def test_importing_the_updates_loads_no_world():
    ask = "import rl_notes.updates, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", ask],
        env=environment(built_site()),
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    loaded = done.stdout.split()
    assert "rl_notes.updates" in loaded
    assert not {"rl_notes.maze", "rl_notes.language"} & set(loaded)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_can_be_imported(module: str):
    there = importlib.import_module(module)
    assert [name for name in PUBLIC[module] if not hasattr(there, name)] == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_neither_prints_nor_sets_a_global_seed(path: Path):
    calls = set(called(ast.parse(path.read_text(encoding="utf-8"))))
    # A checker answers the reader in the notebook: printing is all it does.
    forbidden = SEEDS if path.parent.name == "exercises" else {"print", *SEEDS}
    assert calls & forbidden == set()
