# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what fits, written whole or not at all, the last good one survives a kill."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from sparse_refine.base import load_base_weights
from sparse_refine.storage.checkpointer import SafeCheckpointer
from sparse_refine.storage.weights import load_weights

from .states import STATE, Trap, linear, same

SCRIPT = Path(__file__).with_name("save_and_be_killed.py")

# ---- reading -------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_weights(str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match=r"MODEL.WEIGHTS.*none\.pth"):
        SafeCheckpointer(linear()).load(str(tmp_path / "none.pth"))


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


def test_shapes_that_differ_are_an_error_where_they_are_required(tmp_path):
    torch.save({"model": STATE}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"weight is \(2, 3\) in the checkpoint and \(5, 3\)"):
        SafeCheckpointer(nn.Linear(3, 5), required=("",)).load(str(tmp_path / "two.pth"))


def test_tensors_that_are_missing(tmp_path):
    torch.save({"model": {"0.weight": STATE["weight"]}}, tmp_path / "part.pth")
    path = str(tmp_path / "part.pth")
    SafeCheckpointer(nn.Sequential(linear())).load(path)  # to go on from, in training
    with pytest.raises(ValueError, match=r"0\.bias is missing"):
        SafeCheckpointer(nn.Sequential(linear()), required=("",)).load(path)
    SafeCheckpointer(nn.Sequential(linear()), required=("",), supplied=("0.bi",)).load(path)


# ---- writing -------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_killed_while_saving(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, SCRIPT, str(tmp_path)], env=environment)
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


# ---- what cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["model_0000099.pth", ""])
def test_a_last_checkpoint_that_is_gone(tmp_path, named):
    (tmp_path / "last_checkpoint").write_text(named)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/last_checkpoint names '{named}'"):
        SafeCheckpointer(linear(), str(tmp_path)).resume_or_load("", resume=True)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"MODEL\.WEIGHTS.*'{tmp_path}' is a folder"):
        SafeCheckpointer(linear()).load(str(tmp_path))


def test_a_file_that_cannot_be_fetched(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("fvcore.common.checkpoint.Checkpointer.load", refuse)
    with pytest.raises(OSError, match=r"MODEL\.WEIGHTS: https://no\.where/a\.pth .*Name or serv"):
        SafeCheckpointer(linear()).load("https://no.where/a.pth")
