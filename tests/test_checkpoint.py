# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: read safely, written whole or not at all, the last good one survives a kill."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from sparse_refine.base import load_base_weights
from sparse_refine.storage.checkpointer import SafeCheckpointer
from sparse_refine.storage.weights import load_weights, save_weights, state_digest
from sparse_refine.training.hooks import BestCheckpointer

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([0.5, -1.0])}


class Trap:
    """Unpickled by an unsafe reader, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def linear(value=0.0):
    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def same(content, expected=STATE):
    return content.keys() == expected.keys() and all(
        torch.equal(torch.as_tensor(content[name]), tensor) for name, tensor in expected.items()
    )


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [True, False], ids=["with model", "bare"])
@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_kinds_of_files(tmp_path, suffix, wrapped):
    path = str(tmp_path / f"weights.{suffix}")
    if suffix == "safetensors":
        save_weights(STATE, path)
    else:
        torch.save({"model": STATE, "iteration": 3} if wrapped else STATE, path)
    content = load_weights(path)
    assert same(content["model"])
    if wrapped and suffix != "safetensors":
        assert content["iteration"] == 3


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_weights(str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match=r"MODEL.WEIGHTS.*none\.pth"):
        SafeCheckpointer(linear()).load(str(tmp_path / "none.pth"))


@pytest.mark.parametrize("keep", [0, 10, 300, -200])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_broken_file_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"broken.{suffix}"
    if suffix == "pth":
        torch.save({"model": {"weight": torch.zeros(500)}}, path)
    else:
        save_weights({"weight": torch.zeros(500)}, str(path))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"broken\.{suffix} cannot be read as a checkpoint"):
        load_weights(str(path))


def test_a_pth_file_runs_no_code(tmp_path):
    torch.save({"model": STATE, "extra": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap\.pth cannot be read"):
        load_weights(str(tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_is_read_only_when_allowed(tmp_path):
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match=r"zoo\.pkl is a Python pickle.*MODEL.ALLOW_PICKLE"):
        load_weights(str(path))
    with pytest.raises(ValueError, match=r"MODEL.ALLOW_PICKLE"):
        SafeCheckpointer(linear()).load(str(path))
    assert not (tmp_path / "sprung").exists()


@pytest.fixture
def zoo_file(tmp_path):
    """A file as in Detectron2's model zoo: numpy arrays in a pickle."""
    path = tmp_path / "zoo.pkl"
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return str(path)


def test_a_pickle_of_the_model_zoo(zoo_file):
    model = linear()
    SafeCheckpointer(model, allow_pickle=True).load(zoo_file)
    assert same(model.state_dict())


def test_a_base_from_a_pickle_of_the_model_zoo(zoo_file):
    model = linear()
    load_base_weights(model, zoo_file, allow_pickle=True)
    assert same(model.state_dict())
    with pytest.raises(ValueError, match="MODEL.ALLOW_PICKLE"):
        load_base_weights(model, zoo_file)


def test_shapes_that_differ_are_an_error(tmp_path):
    torch.save({"model": STATE}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"weight is \(2, 3\) in the checkpoint and \(5, 3\)"):
        SafeCheckpointer(nn.Linear(3, 5)).load(str(tmp_path / "two.pth"))


def test_tensors_that_are_missing(tmp_path):
    torch.save({"model": {"0.weight": STATE["weight"]}}, tmp_path / "part.pth")
    path = str(tmp_path / "part.pth")
    SafeCheckpointer(nn.Sequential(linear())).load(path)  # to go on from, in training
    with pytest.raises(ValueError, match=r"0\.bias is missing"):
        SafeCheckpointer(nn.Sequential(linear()), required=("",)).load(path)
    SafeCheckpointer(nn.Sequential(linear()), required=("",), supplied=("0.bi",)).load(path)


# ---- writing -------------------------------------------------------------------------------------


def test_safetensors_round_trip(tmp_path):
    state = {
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 4),
        "half": torch.tensor([0.1]).bfloat16(),
    }
    save_weights(state, tmp_path / "all.safetensors")
    assert same(load_weights(str(tmp_path / "all.safetensors"))["model"], state)
    save_weights(state, tmp_path / "half.safetensors", half=True)
    halved = load_weights(str(tmp_path / "half.safetensors"))["model"]
    assert halved["transposed"].dtype == torch.float16 and halved["count"].dtype == torch.int64
    assert torch.equal(halved["transposed"].float(), state["transposed"])


def test_tied_weights_are_written_twice(tmp_path):
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    save_weights(model.state_dict(), tmp_path / "tied.safetensors")
    assert same(load_weights(str(tmp_path / "tied.safetensors"))["model"], model.state_dict())


def test_digest_changes_with_any_name_or_number():
    digest = state_digest(STATE)
    assert len(digest) == 16 and digest == state_digest({k: v.clone() for k, v in STATE.items()})
    other = {**STATE, "bias": torch.tensor([0.5, -1.0000001])}
    renamed = {"weight": STATE["weight"], "bios": STATE["bias"]}
    counted = {**STATE, "count": torch.tensor(1)}
    assert len({digest, *map(state_digest, (other, renamed, counted))}) == 4
    assert state_digest(STATE, "salt") != digest


def test_round_trip_with_what_goes_along(tmp_path):
    class Along:
        def state_dict(self):
            return {"step": 5}

        def load_state_dict(self, state):
            self.loaded = state

    SafeCheckpointer(linear(2.0), str(tmp_path), trainer=Along()).save("model_1", iteration=5)
    along, model = Along(), linear()
    checkpointer = SafeCheckpointer(model, str(tmp_path), trainer=along)
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 5
    assert along.loaded == {"step": 5} and model.bias.tolist() == [2, 2]
    # like any other file that a program writes, others may read it
    mode = (tmp_path / "model_1.pth").stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask


def test_an_exception_while_saving_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    checkpointer = SafeCheckpointer(linear(1.0), str(tmp_path))
    checkpointer.save("model_1")
    checkpointer.save("model_final")

    def full_disk(data, path):
        Path(path).write_bytes(b"PK\x03\x04 half of it")
        raise OSError("No space left on device")

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(torch, "save", full_disk)
    nn.init.constant_(checkpointer.model.bias, 9.0)
    for name in ("model_2", "model_final"):
        with pytest.raises(OSError, match="No space"):
            checkpointer.save(name)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    fresh = linear()
    SafeCheckpointer(fresh, str(tmp_path)).resume_or_load("", resume=True)
    assert fresh.bias.tolist() == [1, 1]


def save_and_be_killed(folder):
    """Two good checkpoints; then SIGKILL in the middle of writing over the second."""
    checkpointer = SafeCheckpointer(linear(1.0), folder)
    checkpointer.save("model_1")
    checkpointer.save("model_best", tag=False)
    whole = torch.save

    def half(data, path):
        whole(data, path)
        with open(path, "rb+") as file:
            file.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    nn.init.constant_(checkpointer.model.bias, 9.0)
    checkpointer.save("model_best", tag=False)


def test_killed_while_saving(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    for name in ("model_best.pth", "model_1.pth"):
        assert load_weights(str(tmp_path / name))["model"]["bias"].tolist() == [1, 1]
    fresh = linear()
    checkpointer = SafeCheckpointer(fresh, str(tmp_path))
    assert Path(checkpointer.get_checkpoint_file()).name == "model_1.pth"
    checkpointer.resume_or_load("", resume=True)
    assert fresh.bias.tolist() == [1, 1]
    checkpointer.save("model_best", tag=False)  # what the kill left does not stand in the way


def test_untagged_checkpoints_are_not_resumed_from(tmp_path):
    checkpointer = SafeCheckpointer(linear(), str(tmp_path))
    checkpointer.save("model_1")
    checkpointer.save("model_best", tag=False)
    assert Path(checkpointer.get_checkpoint_file()).name == "model_1.pth"


# ---- the best one --------------------------------------------------------------------------------


def evaluations(folder, start_iter, *values):
    """Train with an evaluation in each tenth iteration that gives these values; the best's bias."""
    model = linear()
    hook = BestCheckpointer(10, SafeCheckpointer(model, str(folder)), "mIoU")
    hook.trainer = SimpleNamespace(iter=start_iter, start_iter=start_iter, max_iter=1000)
    with EventStorage(start_iter) as hook.trainer.storage:
        hook.before_train()
        for value in values:
            hook.trainer.iter = (hook.trainer.iter + 1) // 10 * 10 + 9
            hook.trainer.storage.iter = hook.trainer.iter
            hook.trainer.storage.put_scalar("mIoU", value)
            nn.init.constant_(model.bias, value)
            hook.after_step()
    return load_weights(str(Path(folder, "model_best.pth")))["model"]["bias"][0].item()


def test_the_best_checkpoint(tmp_path):
    assert evaluations(tmp_path, 0, 50.0, 40.0) == 50
    assert evaluations(tmp_path, 0, float("nan"), 30.0, 60.0, 60.0, 55.0) == 60
    assert not (tmp_path / "last_checkpoint").exists()


def test_the_best_checkpoint_after_a_resume(tmp_path):
    """The memory is in the file: the run resumes from a checkpoint older than the evaluation."""
    evaluations(tmp_path, 0, 50.0)
    assert evaluations(tmp_path, 10, 45.0) == 50
    assert evaluations(tmp_path, 20, 45.0, 51.0, 50.5) == 51
    assert evaluations(tmp_path, 5, 20.0) == 51
    # and a run that starts anew begins anew
    assert evaluations(tmp_path, 0, 20.0) == 20


def test_the_best_of_a_metric_that_is_not_there(tmp_path, caplog):
    hook = BestCheckpointer(10, SafeCheckpointer(linear(), str(tmp_path)), "mIou")
    hook.trainer = SimpleNamespace(iter=9, start_iter=0, max_iter=1000)
    with EventStorage(9) as hook.trainer.storage:
        hook.after_step()
    assert "mIou does not seem to be computed" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


if __name__ == "__main__":
    save_and_be_killed(sys.argv[1])
