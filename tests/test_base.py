# SPDX-License-Identifier: Apache-2.0
"""Weights of the base: from every kind of file, by prefix, and what does not fit."""

import pytest
import torch
from safetensors.torch import save_file

from sparse_refine import SparseRefine
from sparse_refine.base import build_base

METHOD = "MODEL.SPARSE_REFINE."


@pytest.fixture
def weights(make_cfg):
    """State dict of a tiny base with numbers of its own."""
    torch.manual_seed(11)
    return build_base(make_cfg()).state_dict()


def loaded(make_cfg, file, *options):
    cfg = make_cfg(METHOD + "BASE.WEIGHTS", str(file), *options)
    return SparseRefine(cfg).coarse.base.state_dict()


def same(state, expected):
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], tensor) for name, tensor in expected.items()
    )


def test_base_from_a_detectron2_checkpoint(make_cfg, tmp_path, weights):
    torch.save({"model": weights, "iteration": 7}, tmp_path / "base.pth")
    assert same(loaded(make_cfg, tmp_path / "base.pth"), weights)


def test_base_from_a_bare_state_dict(make_cfg, tmp_path, weights):
    torch.save(weights, tmp_path / "base.pth")
    assert same(loaded(make_cfg, tmp_path / "base.pth"), weights)


def test_base_from_safetensors(make_cfg, tmp_path, weights):
    save_file(weights, tmp_path / "base.safetensors")
    assert same(loaded(make_cfg, tmp_path / "base.safetensors"), weights)


def test_base_from_safetensors_in_half_precision(make_cfg, tmp_path, weights):
    half = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
    save_file(half, tmp_path / "base.safetensors")
    state = loaded(make_cfg, tmp_path / "base.safetensors")
    assert all(state[name].dtype == tensor.dtype for name, tensor in weights.items())
    assert torch.allclose(state["conv.weight"], weights["conv.weight"], atol=1e-3)


def test_base_by_prefix(make_cfg, tmp_path, weights):
    """A base inside a checkpoint of something larger."""
    content = {f"student.{name}": torch.zeros_like(t) for name, t in weights.items()}
    content.update({f"teacher.{name}": tensor for name, tensor in weights.items()})
    torch.save({"model": content}, tmp_path / "both.pth")
    prefix = (METHOD + "BASE.WEIGHTS_PREFIX", "teacher.")
    assert same(loaded(make_cfg, tmp_path / "both.pth", *prefix), weights)
    with pytest.raises(ValueError, match=r"conv.weight is missing.*BASE.WEIGHTS_PREFIX"):
        loaded(make_cfg, tmp_path / "both.pth")


def test_base_weights_that_are_not_there(make_cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        loaded(make_cfg, tmp_path / "nowhere.pth")


def test_base_weights_that_lack_a_tensor(make_cfg, tmp_path, weights):
    weights.pop("head.bias")
    torch.save({"model": weights}, tmp_path / "base.pth")
    with pytest.raises(
        ValueError, match=r"base\.pth does not fit .*TinyBase: head.bias is missing"
    ):
        loaded(make_cfg, tmp_path / "base.pth")


def test_base_weights_of_another_class_count(make_cfg, tmp_path, weights):
    torch.save({"model": weights}, tmp_path / "base.pth")
    with pytest.raises(ValueError) as error:
        loaded(make_cfg, tmp_path / "base.pth", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5)
    assert "head.bias is (3,) in the file and (5,) in the model" in str(error.value)
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES" in str(error.value)
