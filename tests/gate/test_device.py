import pytest
import torch

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
