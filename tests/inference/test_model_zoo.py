# SPDX-License-Identifier: Apache-2.0
"""Shipped models by name: from any working directory, with the weights that belong to them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from sparse_refine.inference import model_zoo
from sparse_refine.inference.predictor import SparseRefinePredictor
from sparse_refine.storage.weights import load_weights

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine"


@pytest.fixture
def own_zoo(tmp_path, monkeypatch) -> Path:
    """A zoo in a folder of its own: configs, and weights that are empty files."""
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    for path in PROJECT.glob("weights/*/*"):
        copy = tmp_path / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    monkeypatch.setenv("SPARSE_REFINE_ZOO", str(tmp_path))
    return tmp_path


def test_every_model_loads_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = model_zoo.names()
    assert {"rgbweed/dense_low", "rgbweed/sparse_refine", "rgbweed/sparse_refine_fast"} <= set(
        names
    )
    for name in names:
        assert Path(model_zoo.get_config_file(name)).is_file()
        assert Path(model_zoo.get_weights(name)).is_file()
        cfg = model_zoo.get_config(f"{name}.yaml")
        assert model_zoo.get_weights(name) == cfg.MODEL.WEIGHTS
        base = cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS
        assert Path(base).is_file() or cfg.MODEL.META_ARCHITECTURE != "SparseRefine"


@pytest.mark.parametrize("name", ["rgbweed/sparse_refine", "synthetic_field/dense_low"])
def test_weights_are_in_the_model(name, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    model = model_zoo.get(name, device="cpu")
    assert not model.training
    state = model.state_dict()
    for key, tensor in load_weights(model_zoo.get_weights(name))["model"].items():
        assert torch.equal(state[key], tensor.to(state[key].dtype)), key
    if name == "rgbweed/sparse_refine":
        base = load_weights(model_zoo.get_weights("rgbweed/dense_low"))["model"]
        for key, tensor in base.items():
            own = state[f"coarse.base.{key}"]
            assert torch.equal(own, tensor.to(own.dtype)), key


def test_a_budget_shares_its_weights():
    fast, slow = ("rgbweed/sparse_refine_fast", "rgbweed/sparse_refine")
    assert model_zoo.get_weights(fast) == model_zoo.get_weights(slow)
    fractions = [
        model_zoo.get_config(name).MODEL.SPARSE_REFINE.SELECTOR.FRACTION for name in (fast, slow)
    ]
    assert fractions == [0.06, 0.1]


def test_unknown_name_lists_the_known_ones():
    for name in ("rgbweed/nothing", "../setup", "rgbweed/Base-RGBWeed.yaml", ""):
        with pytest.raises(ValueError, match="rgbweed/sparse_refine, "):
            model_zoo.get_config_file(name)


def test_options_come_last():
    options = ["MODEL.SPARSE_REFINE.OUTPUT", "logits", "MODEL.WEIGHTS", "elsewhere.pth"]
    cfg = model_zoo.get_config("rgbweed/sparse_refine", options)
    assert (cfg.MODEL.SPARSE_REFINE.OUTPUT, cfg.MODEL.WEIGHTS) == ("logits", "elsewhere.pth")
    assert cfg.is_frozen()


def test_weights_that_come_later_are_found(own_zoo):
    weights = own_zoo / "weights" / "synthetic_field" / "sparse_refine.safetensors"
    weights.unlink(missing_ok=True)
    assert "synthetic_field/sparse_refine" not in model_zoo.names()
    weights.touch()
    assert "synthetic_field/sparse_refine" in model_zoo.names()
    cfg = model_zoo.get_config("synthetic_field/sparse_refine")
    assert str(weights) == cfg.MODEL.WEIGHTS
    low = own_zoo / "weights" / "synthetic_field" / "dense_low.safetensors"
    assert str(low) == cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS


def test_missing_base_is_named(own_zoo):
    (own_zoo / "weights" / "rgbweed" / "dense_low.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="rgbweed/dense_low.safetensors"):
        model_zoo.get_config("rgbweed/sparse_refine")


def test_no_zoo(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_REFINE_ZOO", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere.*SPARSE_REFINE_ZOO"):
        model_zoo.names()


def test_a_yaml_of_the_zoo_brings_its_weights(tmp_path, monkeypatch):
    """The config file of a model does for its name, whatever path leads to it."""
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    path = model_zoo.get_config_file("synthetic_field/dense_low")
    assert model_zoo.find(path) == "synthetic_field/dense_low"
    assert model_zoo.find(str(PROJECT / "configs" / "Base-SparseRefine.yaml")) is None
    predictor = SparseRefinePredictor(os.path.relpath(path), device="cpu")
    assert model_zoo.get_weights("synthetic_field/dense_low") == predictor.cfg.MODEL.WEIGHTS
