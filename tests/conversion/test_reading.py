# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import collections
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_refine.conversion import read_tensors

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}


class History(collections.deque):
    """Stands for mmengine's HistoryBuffer: weights-only loading refuses it."""

    def __init__(self, items=(), length=5):
        super().__init__(items, length)
        self.methods = {"mean": len}


class Trap:
    """An object whose unpickling runs code: it would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def same(tensors):
    return tensors.keys() == STATE.keys() and all(torch.equal(tensors[n], STATE[n]) for n in STATE)


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "iteration": 5},
        lambda state: {"state_dict": state, "meta": {"history": History([1.0, np.float64(2)])}},
        lambda state: {"state_dict": collections.OrderedDict(state), "hyper": {History: History()}},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": {"name": "resnet"}, "state_dict": state, "meta": History()},
        lambda state: {"state_dict": {n: torch.nn.Parameter(t, False) for n, t in state.items()}},
    ],
)
def test_pth(tmp_path, wrap, old_format):
    path = str(tmp_path / "x.pth")
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=not old_format)
    assert same(read_tensors(path))


def test_views_and_dtypes(tmp_path):
    base = torch.arange(12.0).half()
    state = {"view": base[2:8].view(2, 3).t(), "brain": torch.ones(3).bfloat16()}
    path = str(tmp_path / "x.pth")
    torch.save({"state_dict": state, "meta": History()}, path)
    read = read_tensors(path)
    assert all(torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in state.items())


@pytest.mark.parametrize("old_format", [False, True])
def test_no_code_of_the_file_is_run(tmp_path, old_format):
    path, trap = str(tmp_path / "x.pth"), tmp_path / "trap"
    torch.save(
        {"state_dict": STATE, "meta": Trap(trap)},
        path,
        _use_new_zipfile_serialization=not old_format,
    )
    assert same(read_tensors(path)) and not trap.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert trap.exists()


@pytest.mark.filterwarnings("ignore:.*TorchScript archive")
def test_torchscript_is_not_loaded(tmp_path, monkeypatch):
    path = str(tmp_path / "x.pth")
    torch.jit.script(torch.nn.Conv2d(3, 2, 1)).save(path)
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: pytest.fail("its code ran"))
    with pytest.raises(ValueError, match="x.pth is a TorchScript archive"):
        read_tensors(path)


def test_safetensors(tmp_path):
    save_file(STATE, str(tmp_path / "x.safetensors"))
    assert same(read_tensors(str(tmp_path / "x.safetensors")))


def test_pkl_only_where_allowed(tmp_path):
    path = str(tmp_path / "x.pkl")
    with open(path, "wb") as file:
        content = {"model": {n: t.numpy() for n, t in STATE.items()}, "__author__": "x"}
        pickle.dump(content, file)
    with pytest.raises(ValueError, match="pickle"):
        read_tensors(path)
    assert same(read_tensors(path, allow_pickle=True))


@pytest.mark.parametrize(
    "content",
    [
        *([1, 2], {}, {"meta": 1}, {"model": {}}, {"state_dict": {"a": 1}}, History()),
        *({"state_dict": {"a": History()}}, {0: torch.ones(1)}, {"model": {0: torch.ones(1)}}),
    ],
    ids=repr,
)
def test_files_without_tensors(tmp_path, content):
    path = str(tmp_path / "x.pth")
    torch.save(content, path)
    with pytest.raises(ValueError, match="x.pth"):
        read_tensors(path)


def test_a_parameter_of_a_kind_that_is_not_read(tmp_path):
    path = str(tmp_path / "x.pth")
    torch.save({"state_dict": {**STATE, "c": History()}}, path)
    with pytest.raises(ValueError, match="x.pth: c is of a kind"):
        read_tensors(path)


def test_broken_and_absent_files(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="x.pth cannot be read"):
        read_tensors(str(path))
    with pytest.raises(FileNotFoundError, match="y.pth"):
        read_tensors(str(tmp_path / "y.pth"))
