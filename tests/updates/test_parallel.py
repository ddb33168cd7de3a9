"""Several processes take the step of one, or none of them takes any."""

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import several_processes as there
import torch
from several_processes import REFUSED, SAME
from small_policies import KINDS, random_like

from rl_notes import parallel

FILE = there.__file__


def launch(folder: Path, processes: int, *arguments: str) -> None:
    """Run the cases on so many processes as a reader would."""
    # The tests' folders, and one thread each. gloo asks for a name of this machine,
    # which need not have an address: the loopback has.
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", FILE, str(folder), *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=[2, 3], ids=["two", "three"])
def found(request, tmp_path_factory):
    """What each process answered, in order of rank."""
    folder = tmp_path_factory.mktemp("processes")
    launch(folder, request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def assert_the_step_of_one(answers, alone, within):
    for other in answers:
        assert torch.equal(other["weights"], answers[0]["weights"])
        off = (other["weights"] - alone["weights"]).norm()
        assert off <= within * alone["moved"].norm()
        for name, number in alone["stats"].items():
            assert other["stats"][name] == pytest.approx(number, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAME)
def test_several_processes_take_the_step_of_one(found, kind, name):
    alone = there.updated(kind, name)
    answers = [each[f"{kind}: {name}"] for each in found]
    assert_the_step_of_one(answers, alone, within=1e-9)
    if "anywhere" not in name:
        assert alone["moved"].norm() > 1e-3


@pytest.mark.parametrize("name", ["reinforce", "grpo, all of it", "ppo"])
def test_in_float32_the_step_is_the_same_to_a_millionth(found, name):
    alone = there.updated("transformer", name, dtype=torch.float32)
    assert_the_step_of_one([x[f"float32: {name}"] for x in found], alone, within=1e-6)


@pytest.mark.parametrize("name", ["some_weights_are_frozen", "value_is_fitted"])
def test_parts_of_a_model_and_values_are_trained_together_too(found, name):
    alone = getattr(there, name)()
    assert_the_step_of_one([each[name] for each in found], alone, within=1e-9)


def test_where_sums_are_rounded_otherwise_the_weights_are_those_of_process_0(found):
    answers = [each["rounded_otherwise"] for each in found]
    assert_the_step_of_one(answers, there.rounded_otherwise(), within=1e-6)
    assert all(each["stats"] == answers[0]["stats"] for each in answers)


def patterns():
    """Pairs of unlike numbers, of which one is the other moved or turned around."""
    ones = torch.ones(8, dtype=torch.float64)
    for place in range(8):
        turned = ones.clone()
        turned[place] = -1
        yield ones, turned
    a, b = torch.randn(2, generator=torch.Generator().manual_seed(0)).tolist()
    yield torch.tensor([a, b, b, a]), torch.tensor([b, a, a, b])
    yield torch.tensor([a, b, b, a, b, a, a, b]), torch.tensor([b, a, a, b, a, b, b, a])
    yield (
        torch.tensor([True, False, False, True]),
        torch.tensor([False, True, True, False]),
    )
    yield ones, ones.float()
    yield ones, ones.view(2, 4)
    yield None, ones


@pytest.mark.parametrize("looked_at", [3, 2**22])
def test_a_fingerprint_tells_what_is_moved_or_turned_around(monkeypatch, looked_at):
    monkeypatch.setattr(parallel, "LOOKED_AT", looked_at)
    for here, elsewhere in patterns():
        assert parallel._fingerprint(here) != parallel._fingerprint(elsewhere)
    for each in (torch.zeros(0), torch.ones(5, 2).t(), torch.tensor(2.0), None, 3):
        known = copy.deepcopy(each)
        assert parallel._fingerprint(each) == parallel._fingerprint(known)


def test_the_fingerprint_of_a_module_knows_its_buffers_and_what_is_trained():
    layer, norm = torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)
    module = torch.nn.Sequential(layer, norm)
    seen = [parallel._fingerprint(module)]
    assert parallel._fingerprint(copy.deepcopy(module)) == seen[0]
    norm.get_buffer("running_mean").add_(1)
    seen.append(parallel._fingerprint(module))
    layer.bias.requires_grad_(False)
    seen.append(parallel._fingerprint(module))
    layer.weight.detach()[0, 0] += 1
    seen.append(parallel._fingerprint(module))
    assert all(a != b for a, b in itertools.combinations(seen, 2))


def test_the_gathered_batch_is_that_of_one_process(found):
    _, batch, _ = there.prepared("transformer")
    numbers = random_like(batch) * batch.mask
    for each in found:
        rows = each["gathered"]["batch"]
        for name, tensor in vars(batch).items():
            # What a process has not sampled it cannot know: past a row's end it pads.
            inside = torch.ones_like(tensor, dtype=torch.bool)
            if name in ("actions", "logprobs", "rewards", "mask"):
                inside = batch.mask
            if name == "observations":
                columns = torch.arange(tensor.shape[1])
                inside = columns <= batch.lengths[:, None]
            if name != "groups":
                assert torch.equal(rows[name][inside], tensor[inside]), name
        torch.testing.assert_close(each["gathered"]["steps"] * batch.mask, numbers)


def test_prompts_of_different_processes_are_different_groups(found):
    """Two answers to each of three prompts, split between the answers of one prompt."""
    groups = found[0]["gathered"]["batch"]["groups"].tolist()
    sizes = [len(rows) for rows in torch.arange(6).tensor_split(len(found))]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [groups[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    for number, part in enumerate(parts):
        others = [g for k, other in enumerate(parts) if k != number for g in other]
        assert not set(part) & set(others)


def test_rows_are_shared_out_by_length(found):
    """Tokens: 1, 1, 3, 4, 4, 4, 9, 30. The last row is more than half of them."""
    shares = [each["shared"]["all"] for each in found]
    assert list(itertools.chain(*shares)) == list(range(10, 18))
    assert shares[-1] == [17]
    assert sorted(len(each["shared"]["one"]) for each in found)[-2:] == [0, 1]


def test_processes_that_sampled_alike_are_told(found):
    for each in found:
        (said,) = each["all_sampled_alike"]
        assert "seed + rank" in said


@pytest.mark.parametrize("name", REFUSED)
def test_what_goes_wrong_on_one_process_ends_the_update_on_all(found, name):
    for said, kept in (each[name] for each in found):
        assert said != "nothing"
        assert kept, "weights or generator were not put back"
    mine, other = found[1][name][0], found[0][name][0]
    told = {
        "an error in the objective": ("ZeroDivisionError", "one half of nothing"),
        "an error in the second epoch": ("ZeroDivisionError", "one half of nothing"),
        "the stop button": ("KeyboardInterrupt", "Process 1 stopped"),
        "an error in the aggregation": ("ZeroDivisionError", "one half of nothing"),
        "no generator": ("nowhere to draw from", "Process 1 stopped"),
        "another learning rate": ("weights after the up", "weights after the update"),
        "the optimizer": ("MemoryError", "no memory left"),
        "other weights": ("disagree about the weights", "disagree about the weights"),
        "another batch": ("disagree about the batch", "disagree about the batch"),
        "rows in another order": ("about the batch", "about the batch"),
        "other advantages": ("about the advantages", "about the advantages"),
        "more epochs": ("about the settings", "about the settings"),
        "advantages of another shape": ("one number per step", "Process 1 stopped"),
        "a beta without a reference": ("reference_logprobs", "Process 1 stopped"),
    }
    assert told[name][0] in mine
    assert told[name][1] in other


def test_a_module_in_ddp_is_refused_with_the_line_that_helps(found):
    assert all("wrapped.module" in each["wrapped"] for each in found)


def test_a_process_that_dies_takes_the_others_along_in_seconds(tmp_path):
    launch(tmp_path, 2, "one_dies")
    assert torch.load(tmp_path / "0.pt")["one_dies"] < 30
