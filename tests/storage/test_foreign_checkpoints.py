# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as other programs write them, as MODEL.WEIGHTS and as a base's BASE.WEIGHTS."""

import argparse
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_refine.base import build_base
from sparse_refine.inference.loading import load_model
from sparse_refine.storage.checkpointer import SafeCheckpointer
from sparse_refine.storage.weights import load_weights
from sparse_refine.training.trainer import Trainer

TINY = """
from torch import nn


class Tiny(nn.Module):
    def __init__(self, k=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, k, 1))

    def forward(self, x):
        return self.layers(x)
"""
GIVEN = Path(__file__).parents[3] / "shared" / "cases" / "checkpoints"  # beside the clone, or not
BASE_WEIGHTS = "MODEL.SPARSE_REFINE.BASE.WEIGHTS"
NAMES = ("layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias")
FITTING = ("plain", "state_dict", "model_state_dict", "ddp", "compiled", "lightning")


def state_of(classes=3) -> dict:
    torch.manual_seed(5)
    shapes = ((8, 3, 3, 3), (8,), (classes, 8, 1, 1), (classes,))
    return {name: torch.randn(shape) for name, shape in zip(NAMES, shapes)}


def prefixed(prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state_of().items()}


def write_all(folder: Path) -> Path:
    contents = {
        "plain": state_of(),
        "state_dict": {"state_dict": state_of(), "epoch": 3},
        "model_state_dict": {"model_state_dict": state_of(), "optimizer_state_dict": {}},
        "ddp": prefixed("module."),
        "compiled": prefixed("_orig_mod."),
        "lightning": {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.1.0"},
        "with_namespace": {"model": state_of(), "args": argparse.Namespace(lr=0.1)},
        "five_classes": state_of(5),
        "nothing_fits": {"encoder.weight": torch.ones(3, 3), "encoder.bias": torch.ones(3)},
        "compiled_ddp": prefixed("module._orig_mod."),
        "mmengine": {"meta": {}, "state_dict": state_of(), "message_hub": {}},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pth")
    return folder


@pytest.fixture(params=["written here", "as given"])
def folder(request, tmp_path) -> Path:
    if request.param == "written here":
        return write_all(tmp_path)
    if not GIVEN.is_dir():
        pytest.skip("the files are not beside this clone")
    return GIVEN


@pytest.fixture
def cfg_of(make_cfg, tmp_path, monkeypatch):
    """make(*options) -> config of the dense Tiny, which is also the config of it as a base."""
    monkeypatch.setenv("SPARSE_REFINE_TRUST_CODE", "1")
    (tmp_path / "tiny_net.py").write_text(TINY)

    def make(*options):
        return make_cfg(
            "MODEL.META_ARCHITECTURE", "ModuleSegmentor",
            "MODEL.MODULE.PATH", f"{tmp_path}/tiny_net.py:Tiny",
            "MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "ModuleSegmentor",
            *options,
        )  # fmt: skip

    return make


def tensors_in(path: Path) -> list:
    return list(load_weights(str(path), allow_pickle=True)["model"].values())


def assert_holds(model, path: Path) -> None:
    own = list(model.network.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(own, tensors_in(path), strict=True))


@pytest.mark.parametrize("name", FITTING)
def test_what_can_be_unwrapped_loads(folder, cfg_of, name):
    path = folder / f"{name}.pth"
    assert_holds(load_model(cfg_of("MODEL.WEIGHTS", str(path))), path)
    assert_holds(build_base(cfg_of(BASE_WEIGHTS, str(path))), path)


@pytest.mark.parametrize("name", ["compiled_ddp", "mmengine"])
def test_wrappers_in_wrappers(tmp_path, cfg_of, name):
    path = write_all(tmp_path) / f"{name}.pth"
    assert_holds(load_model(cfg_of("MODEL.WEIGHTS", str(path))), path)
    assert_holds(build_base(cfg_of(BASE_WEIGHTS, str(path))), path)


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", BASE_WEIGHTS])
def test_objects_beside_the_weights_need_consent(folder, cfg_of, key):
    path = folder / "with_namespace.pth"
    load = load_model if key == "MODEL.WEIGHTS" else build_base
    with pytest.raises(ValueError, match=r"with_namespace\.pth.*Namespace.*MODEL\.ALLOW_PICKLE"):
        load(cfg_of(key, str(path)))
    assert_holds(load(cfg_of(key, str(path), "MODEL.ALLOW_PICKLE", True)), path)


def test_other_classes_are_an_error_where_nothing_is_trained(folder, cfg_of):
    path = str(folder / "five_classes.pth")
    shapes = r"layers\.2\.weight is \(5, 8, 1, 1\) in the .* and \(3, 8, 1, 1\) in the model"
    with pytest.raises(ValueError, match=rf"five_classes\.pth.*{shapes}.*NUM_CLASSES"):
        load_model(cfg_of("MODEL.WEIGHTS", path))
    with pytest.raises(ValueError, match=rf"five_classes\.pth.*{shapes}.*NUM_CLASSES"):
        build_base(cfg_of(BASE_WEIGHTS, path))


def test_a_file_of_which_nothing_fits(folder, cfg_of):
    path = str(folder / "nothing_fits.pth")
    found = r"nothing_fits\.pth.*(none of its tensors|layers\.0\.weight is missing)"
    with pytest.raises(ValueError, match=found):
        load_model(cfg_of("MODEL.WEIGHTS", path))
    with pytest.raises(ValueError, match=found):
        build_base(cfg_of(BASE_WEIGHTS, path))
    training = SafeCheckpointer(Trainer.build_model(cfg_of()))  # where mismatches are skipped
    first = re.escape(next(iter(load_weights(path)["model"])))
    for query in ("", "?matching_heuristics=True"):
        message = rf"none of its tensors.*{first}.*layers\.0\.weight"
        with pytest.raises(ValueError, match=message):
            training.load(path + query)


def test_a_whole_refiner_in_wrappers(make_cfg, tmp_path):
    """The prefix of its base is no wrapper's, and its own are taken off."""
    cfg = make_cfg()
    model = Trainer.build_model(cfg)
    for prefix in ("module.", "_orig_mod.", "model."):
        path = tmp_path / "refiner.pth"
        torch.save({prefix + name: t + 1 for name, t in model.state_dict().items()}, path)
        cfg.MODEL.WEIGHTS = str(path)
        found = load_model(cfg).state_dict()
        assert all(torch.equal(found[name], t + 1) for name, t in model.state_dict().items())


@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
def test_a_model_whose_names_look_like_a_wrappers(tmp_path, query):
    """Its own `module.` stays, with and without DistributedDataParallel's before it."""
    model = torch.nn.Module()
    model.module = torch.nn.Linear(2, 2)
    for prefix in ("", "module."):
        path = tmp_path / "named.pth"
        torch.save({prefix + name: t + 1 for name, t in model.state_dict().items()}, path)
        other = torch.nn.Module()
        other.module = torch.nn.Linear(2, 2)
        SafeCheckpointer(other, required=("",)).load(f"{path}{query}")
        assert torch.equal(other.module.weight, model.module.weight + 1)


@pytest.mark.parametrize("ending", ["pth", "pkl"])
@pytest.mark.parametrize(
    "content, found",
    [
        ({"epoch": 3, "loss": 0.5}, r"keys \['epoch': int, 'loss': float\]"),
        ([1, 2], "a list"),
        (None, "a NoneType"),
        ({}, r"keys \[\]"),
        ({"state_dict": {}}, r"keys \['state_dict': dict of 0 entries\]"),
        ({"model": {}}, r"keys \['model': dict of 0 entries\]"),
        ({"model": {"state_dict": {}}}, r"keys \['model': dict of 1 entries\]"),
        ({"model": {"epoch": 3}}, r"keys \['model': dict of 1 entries\]"),
        ({"blobs": {}}, r"keys \['blobs': dict of 0 entries\]"),
        ({0: torch.ones(2)}, r"keys \[0: Tensor\]"),
        ({"state": {0: {"step": torch.ones(1)}}}, r"keys \['state': dict of 1 entries\]"),
    ],
    ids=str,
)
def test_a_file_without_weights(tmp_path, cfg_of, content, found, ending):
    """Whatever loads it: as it is, with names matched by Detectron2's heuristics, as a base."""
    path = str(tmp_path / f"other.{ending}")
    if ending == "pth":
        torch.save(content, path)
    else:
        Path(path).write_bytes(pickle.dumps(content))
    for load, key, query in (
        (load_model, "MODEL.WEIGHTS", ""),
        (load_model, "MODEL.WEIGHTS", "?matching_heuristics=True"),
        (build_base, BASE_WEIGHTS, ""),
    ):
        with pytest.raises(ValueError, match=rf"other\.{ending} holds no weights, but {found}"):
            load(cfg_of(key, path + query, "MODEL.ALLOW_PICKLE", ending == "pkl"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": {"state_dict": state}, "epoch": 3},
        lambda state: {"model": {"name": "tiny"}, "state_dict": state},
        lambda state: {"model": {}, "model_state_dict": state},
    ],
)
def test_containers_in_containers_and_beside_others(tmp_path, cfg_of, wrap):
    path = tmp_path / "wrapped.pth"
    torch.save(wrap(state_of()), path)
    assert_holds(load_model(cfg_of("MODEL.WEIGHTS", str(path))), path)
    assert_holds(build_base(cfg_of(BASE_WEIGHTS, str(path))), path)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
def test_what_is_no_tensor_among_the_tensors(tmp_path, cfg_of, caplog, wrapped):
    """A number or a text beside the weights is left out, and that is said."""
    path, state = tmp_path / "noted.pth", {**state_of(), "epoch": 3, "note": "best"}
    torch.save({"state_dict": state} if wrapped else state, path)
    with caplog.at_level("WARNING"):
        assert_holds(load_model(cfg_of("MODEL.WEIGHTS", str(path))), path)
    assert "noted.pth: ['epoch', 'note'] are no tensors" in caplog.text
    assert_holds(build_base(cfg_of(BASE_WEIGHTS, str(path))), path)


def test_caffe2_blobs(tmp_path):
    """Detectron's own: a pickle of {"blobs": ...}, momenta among them, names by heuristics."""
    stem = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(3, 8, 3)})
    model = torch.nn.ModuleDict({"stem": stem})
    blobs = {"conv1_w": np.ones((8, 3, 3, 3), np.float32), "conv1_b": np.ones(8, np.float32)}
    blobs["conv1_w_momentum"] = np.zeros((8, 3, 3, 3), np.float32)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "text"}))
    SafeCheckpointer(model, allow_pickle=True, required=("",)).load(str(path))
    assert all((parameter == 1).all() for parameter in model.parameters())
