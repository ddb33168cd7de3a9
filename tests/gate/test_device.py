import ast

import pytest
import torch
from gate import ROOT

from rl_notes.device import pick_device


def test_the_variable_overrides(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("RL_NOTES_DEVICE", "cpu")
    assert pick_device() == torch.device("cpu")


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize(("there", "kind"), [(True, "cuda"), (False, "cpu")])
def test_cuda_is_used_when_it_is_there(monkeypatch, value, there, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    if value is None:
        monkeypatch.delenv("RL_NOTES_DEVICE", raising=False)
    else:
        monkeypatch.setenv("RL_NOTES_DEVICE", value)
    assert pick_device() == torch.device(kind)


@pytest.mark.parametrize("value", ["graphics card", "cuda:77", "gpu"])
def test_a_device_that_cannot_be_used_is_refused(monkeypatch, value):
    monkeypatch.setenv("RL_NOTES_DEVICE", value)
    with pytest.raises(ValueError, match=f"^RL_NOTES_DEVICE='{value}' .*Set it to 'cp"):
        pick_device()


MAKERS = "tensor zeros ones full empty arange linspace eye rand randn randint as_tensor"


FILES = sorted((ROOT / "rl_notes").rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_tensor_is_made_without_a_device(path):
    """Or it would lie on the default device, whatever the others lie on."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            named = isinstance(node.func.value, ast.Name) and node.func.value.id
            if named == "torch" and node.func.attr in MAKERS.split():
                words = {word.arg for word in node.keywords}
                assert "device" in words, f"{path.name}:{node.lineno}"
