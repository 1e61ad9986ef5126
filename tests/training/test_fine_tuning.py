# SPDX-License-Identifier: Apache-2.0
"""Weights from elsewhere in training, and models whose names or random numbers are awkward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import nn

from sparse_refine import SparseRefinePredictor
from sparse_refine.storage.weights import load_weights

from ..tiny import TinyBase
from .runs import METHOD, assert_same, base_weights, final, stop_at

NETS = """
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self, k=3, dropout=0.0, pretrained=""):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, k, 1)
        )
        if pretrained:
            self.load_state_dict(torch.load(pretrained, weights_only=True))

    def forward(self, x):
        return self.layers(x)


class Inner(nn.Module):
    '''All of its names begin as those that DistributedDataParallel writes.'''

    def __init__(self, k=3):
        super().__init__()
        self.module = Two(k)

    def forward(self, x):
        return self.module(x)
"""


@META_ARCH_REGISTRY.register()
class ModuleAtTheRoot(nn.Module):
    """A user's meta-architecture that keeps its network in an attribute called `module`."""

    def __init__(self, cfg):
        super().__init__()
        self.module = TinyBase(cfg)

    def forward(self, inputs):
        return self.module(inputs)


@pytest.fixture
def dense_run(run, tmp_path, monkeypatch):
    """As `run`, of the dense model `name` of NETS; `arguments` are those of its class."""
    monkeypatch.setenv("SPARSE_REFINE_TRUST_CODE", "1")
    (tmp_path / "nets.py").write_text(NETS)

    def train(folder, name, *options, arguments=None, flags=()):
        file = tmp_path / "nets.py"
        if arguments:
            file, name = tmp_path / "given_nets.py", "Given"
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            made = (
                f"class Given(Two):\n    def __init__(self):\n        super().__init__({given})\n"
            )
            file.write_text(f"{NETS}\n\n{made}")
        model = [
            "MODEL.META_ARCHITECTURE",
            "ModuleSegmentor",
            "MODEL.MODULE.PATH",
            f"{file}:{name}",
        ]
        return run(folder, *model, "SOLVER.BASE_LR", 0.02, *options, flags=flags)

    return train


# ---- names that collide with a library's conventions ---------------------------------------------


@pytest.fixture
def four_images(tmp_path):
    """Options that put 64 x 64 images of three classes in the place of the tiny data set."""
    generator = np.random.default_rng(1)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(4):
        labels = generator.integers(0, 3, (8, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        image = (labels[..., None] * 90 + generator.integers(0, 40, (64, 64, 3))).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{index}.png")
    name = f"four_{tmp_path.name}"
    folders = [[name, str(tmp_path / "images"), str(tmp_path / "labels")]]
    yield [
        "DATASETS.FOLDERS", folders,
        "DATASETS.CLASS_NAMES", ["a", "b", "c"],
        "DATASETS.TRAIN", (name,),
        "DATASETS.TEST", (name,),
        "INPUT.CROP.ENABLED", False,
        "INPUT.RESIZE_RANGE", [1.0, 1.0],
    ]  # fmt: skip
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Two", "Inner", "at the root"])
def test_a_dense_model_keeps_its_weights(dense_run, run, four_images, tmp_path, name):
    """Resumed as well as evaluated, whatever its attributes are called."""

    def train(folder, *options, flags=()):
        options = [*four_images, "SOLVER.CHECKPOINT_PERIOD", 60, *options]
        if name == "at the root":
            options += ["MODEL.META_ARCHITECTURE", "ModuleAtTheRoot", "SOLVER.BASE_LR", 0.02]
            return run(folder, *options, flags=flags)
        return dense_run(folder, name, *options, flags=flags)

    # the schedule is that of 61 iterations in both; the first run ends after its 60th
    train("unbroken", "SOLVER.MAX_ITER", 61)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 60)
        train("resumed", "SOLVER.MAX_ITER", 61)
    assert (tmp_path / "resumed" / "last_checkpoint").read_text() == "model_0000059.pth"
    train("resumed", "SOLVER.MAX_ITER", 61, flags=["--resume"])
    assert_same(final(tmp_path / "unbroken"), final(tmp_path / "resumed"))

    weights = str(tmp_path / "resumed" / "model_final.pth")
    results = train("resumed", "MODEL.WEIGHTS", weights, flags=["--eval-only"])
    assert results["sparse_refine"]["mIoU"] > 80

    train("further", "SOLVER.MAX_ITER", 60)
    train("further", "SOLVER.MAX_ITER", 61, flags=["--resume"])
    weights = str(tmp_path / "further" / "model_final.pth")
    again = train("further", "MODEL.WEIGHTS", weights, flags=["--eval-only"])
    assert again["sparse_refine"]["mIoU"] > 80

    yaml = str(tmp_path / "further" / "given_0.yaml")
    predictor = SparseRefinePredictor(yaml, weights)
    labels = predictor(tmp_path / "images" / "0.png")["labels"].numpy()
    truth = np.asarray(Image.open(tmp_path / "labels" / "0.png"))
    assert (labels == truth).mean() > 0.9


def test_a_plain_state_dict_fits_both_keys(dense_run, run, tmp_path):
    dense_run("dense", "Two", "SOLVER.MAX_ITER", 1)
    state = final(tmp_path / "dense")
    assert all(name.startswith("network.") for name in state)
    plain = str(tmp_path / "plain.pth")
    torch.save({name.removeprefix("network."): tensor for name, tensor in state.items()}, plain)
    dense_run("again", "Two", "MODEL.WEIGHTS", plain, flags=["--eval-only"])
    path = f"{tmp_path}/nets.py:Two"
    run(
        "refined",
        *(METHOD + "BASE.META_ARCHITECTURE", "ModuleSegmentor", "MODEL.MODULE.PATH", path),
        *(METHOD + "BASE.WEIGHTS", plain, "SOLVER.MAX_ITER", 1),
    )
    refined = final(tmp_path / "refined")
    assert all(torch.equal(refined[f"coarse.base.{name}"], state[name]) for name in state)


# ---- other classes, other names ------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
def test_a_checkpoint_of_other_classes(dense_run, tmp_path, caplog, query):
    """Fine-tuned as in Detectron2, which skips what does not fit; not evaluated."""
    state = {
        "layers.0.weight": torch.full((8, 3, 3, 3), 0.01),
        "layers.0.bias": torch.full((8,), 0.5),
        "layers.3.weight": torch.zeros(5, 8, 1, 1),
        "layers.3.bias": torch.zeros(5),
    }
    path = tmp_path / "five_classes.pth"
    torch.save({f"network.{n}": t for n, t in state.items()} if query else state, path)
    weights = ["MODEL.WEIGHTS", f"{path}{query}"]
    dense_run("tuned", "Two", *weights, "SOLVER.BASE_LR", 1e-9, "SOLVER.MAX_ITER", 1)
    tuned = final(tmp_path / "tuned")
    assert torch.allclose(tuned["network.layers.0.bias"], torch.tensor(0.5))
    assert tuned["network.layers.3.bias"].shape == (3,)
    log = (tmp_path / "tuned" / "log.txt").read_text()
    assert "network.layers.3.weight" in log and "(5, 8, 1, 1)" in log
    with pytest.raises(ValueError, match=r"five_classes.*layers\.3\.(weight|bias) is"):
        dense_run("tuned", "Two", *weights, flags=["--eval-only"])


def test_a_query_that_nobody_knows(dense_run, tmp_path):
    torch.save({"layers.0.bias": torch.zeros(8)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no such option.*heuristics"):
        dense_run("a", "Two", "MODEL.WEIGHTS", f"{tmp_path}/a.pth?heuristics=True")


def test_a_tensor_that_is_missing_on_resume(dense_run, tmp_path):
    dense_run("a", "Two", "SOLVER.MAX_ITER", 2)
    file = tmp_path / "a" / "model_final.pth"
    content = torch.load(file, weights_only=True)
    del content["model"]["network.layers.0.bias"]
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"model_final\.pth.*network\.layers\.0\.bias is missing"):
        dense_run("a", "Two", "SOLVER.MAX_ITER", 4, flags=["--resume"])


# ---- resumed is unbroken -------------------------------------------------------------------------


@pytest.mark.slow
def test_dropout_of_a_resumed_run(dense_run, tmp_path, monkeypatch):
    options = {"arguments": {"dropout": 0.5}}
    dense_run("unbroken", "Two", **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        dense_run("broken", "Two", **options)
    torch.manual_seed(77)  # another process has other random numbers
    dense_run("broken", "Two", flags=["--resume"], **options)
    assert_same(final(tmp_path / "unbroken"), final(tmp_path / "broken"))
    dense_run("without", "Two")
    bias = "network.layers.0.bias"
    assert not torch.equal(final(tmp_path / "without")[bias], final(tmp_path / "broken")[bias])


@pytest.mark.parametrize("key, before, after", [("BASE_LR", 0.02, 0.5), ("WEIGHT_DECAY", 0.1, 0.3)])
def test_a_changed_solver_is_said(dense_run, tmp_path, key, before, after):
    key = f"SOLVER.{key}"
    dense_run("a", "Two", key, before, "SOLVER.MAX_ITER", 2)
    dense_run("a", "Two", key, after, "SOLVER.MAX_ITER", 3, flags=["--resume"])
    log = (tmp_path / "a" / "log.txt").read_text()
    assert f"{key} is {after:g}, but --resume goes on with the checkpoint's {before:g}" in log


# ---- what training must not write over -----------------------------------------------------------


@pytest.mark.slow
def test_a_refiner_does_not_replace_its_base(run, tmp_path):
    """Its yaml has the base's as _BASE_, and no OUTPUT_DIR of its own."""
    run("base", "MODEL.META_ARCHITECTURE", "TinyBase", "SOLVER.MAX_ITER", 1)
    file = tmp_path / "base" / "model_final.pth"
    before = {path: path.read_bytes() for path in (file, file.with_name("config.yaml"))}
    for name in ("model_final.pth", "../base/model_final.pth"):
        weights = str(tmp_path / "base" / name)
        with pytest.raises(ValueError, match=r"BASE\.WEIGHTS is .*over it.*another OUTPUT_DIR"):
            run("base", METHOD + "BASE.WEIGHTS", weights)
        with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is .*over it.*another OUTPUT_DIR"):
            run("base", "MODEL.META_ARCHITECTURE", "TinyBase", "MODEL.WEIGHTS", weights)
    for node in ("EXTRACTOR", "TEACHER"):
        with pytest.raises(ValueError, match=rf"{node}\.WEIGHTS is .*over it.*another OUTPUT_DIR"):
            run("base", METHOD + f"{node}.WEIGHTS", str(file))
    assert {path: path.read_bytes() for path in before} == before
    run("refined", METHOD + "BASE.WEIGHTS", str(file), "SOLVER.MAX_ITER", 1)


def test_a_checkpoint_that_is_a_link_to_the_base(run, tmp_path, make_cfg):
    """Checkpoints are written through links: to a file of any name, anywhere."""
    (tmp_path / "store").mkdir()
    (tmp_path / "out").mkdir()
    file = Path(base_weights(make_cfg(), tmp_path / "store"))
    before, link = file.read_bytes(), tmp_path / "out" / "model_final.pth"
    link.symlink_to(file)
    for weights in (file, link):
        with pytest.raises(ValueError, match=r"BASE\.WEIGHTS is .*over it.*another OUTPUT_DIR"):
            run("out", METHOD + "BASE.WEIGHTS", str(weights))
    assert file.read_bytes() == before


# ---- a dense model that comes with its weights ---------------------------------------------------


@pytest.mark.slow
def test_a_pretrained_module_by_itself(dense_run, tmp_path):
    dense_run("trained", "Two", "SOLVER.MAX_ITER", 2)
    state = load_weights(str(tmp_path / "trained" / "model_final.pth"))["model"]
    own = str(tmp_path / "own.pth")
    torch.save({name.removeprefix("network."): tensor for name, tensor in state.items()}, own)
    options = {"arguments": {"pretrained": own}}
    pretrained = ["MODEL.MODULE.PRETRAINED", True]
    results = dense_run("a", "Two", *pretrained, flags=["--eval-only"], **options)
    weights = ["MODEL.WEIGHTS", str(tmp_path / "trained" / "model_final.pth")]
    expected = dense_run("b", "Two", *weights, flags=["--eval-only"])
    assert results["sparse_refine"]["mIoU"] == expected["sparse_refine"]["mIoU"]
    predictor = SparseRefinePredictor(str(tmp_path / "a" / "given_0.yaml"))
    assert predictor(np.zeros((20, 30, 3), np.uint8))["labels"].shape == (20, 30)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is ''"):
        dense_run("a", "Two", flags=["--eval-only"], **options)
