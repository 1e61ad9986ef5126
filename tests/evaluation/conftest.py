# SPDX-License-Identifier: Apache-2.0
"""A base whose answers are known beforehand, and `train_net.py --eval-only` on top of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from sparse_refine.data import read_image
from sparse_refine.resampling import downsample, low_size
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

from .label_maps import register

TRAIN_NET = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "train_net.py"
SCALE = 0.5


@META_ARCH_REGISTRY.register()
class KnownBase(nn.Module):
    """Gives each image the answer that was put down for it: {"sem_seg": ..., "panoptic_seg": ...}.

    A base is not told the file's name, so the answer is found by the image that it is shown.
    """

    answers: dict[tuple, dict] = {}

    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # a checkpoint must hold something

    def forward(self, batched_inputs):
        return [dict(self.answers[self.key(item["image"])]) for item in batched_inputs]

    @staticmethod
    def key(image: torch.Tensor) -> tuple:
        return tuple(image.shape), float(image.double().sum())

    @classmethod
    def put(cls, file_name: str, labels: np.ndarray, num_classes: int, unsure=None, **others):
        """The answer for a file: `labels` (h,w) at half size, sure but where `unsure` (h,w) says.

        Unsure pixels have the same label and nearly the highest entropy that there is.
        """
        scores = nn.functional.one_hot(torch.as_tensor(labels).long(), num_classes).float()
        sure = torch.full(labels.shape, 40.0)
        if unsure is not None:
            sure[torch.as_tensor(unsure)] = 0.1
        image = torch.as_tensor(read_image(file_name)).permute(2, 0, 1)
        small = downsample(image, low_size(image.shape[-2:], SCALE))
        assert tuple(small.shape[-2:]) == labels.shape
        cls.answers[cls.key(small)] = {"sem_seg": (scores * sure[..., None]).permute(2, 0, 1)}
        cls.answers[cls.key(small)].update(others)


def half(labels: np.ndarray) -> np.ndarray:
    """Labels at half size, the upper left of each four, cut to what the base is shown."""
    height, width = low_size(labels.shape, SCALE)
    return labels[::2, ::2][:height, :width]


def double(low: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Back to full size by nearest neighbour, as the paper has it, in plain numpy."""
    rows = (2 * np.arange(shape[0]) + 1) * low.shape[0] // (2 * shape[0])
    columns = (2 * np.arange(shape[1]) + 1) * low.shape[1] // (2 * shape[1])
    return low[rows][:, columns]


def ious(predictions, truths, num_classes: int, ignore: int = 255) -> np.ndarray:
    """IoU of each class over all images, in percent, NaN where no pixel is of it or called so."""
    result = np.full(num_classes, np.nan)
    for c in range(num_classes):
        both = either = 0
        for prediction, truth in zip(predictions, truths):
            valid = truth != ignore
            both += np.sum((prediction == c) & (truth == c))
            either += np.sum(((prediction == c) & valid) | (truth == c))
        if either:
            result[c] = 100 * both / either
    return result


@pytest.fixture
def by_hand():
    """put: a known answer; half, double, ious: numpy's own arithmetic. Afterwards both catalogs and
    the answers are as they were."""
    before = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield SimpleNamespace(put=KnownBase.put, half=half, double=double, ious=ious)
    for catalog, data in before:
        catalog.data.clear()
        catalog.data.update(data)
    KnownBase.answers.clear()


@pytest.fixture
def eval_only(make_cfg, tmp_path, quiet_logs, monkeypatch):
    """run(dataset, num_classes, *options) -> what `train_net.py --eval-only` returns."""
    monkeypatch.setattr("detectron2.engine.defaults.collect_env_info", str)  # asks compilers

    def run(dataset: str, num_classes: int, *options):
        cfg = make_cfg(
            *("DATASETS.TRAIN", (), "DATASETS.TEST", (dataset,), "OUTPUT_DIR", str(tmp_path)),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes),
            *("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "KnownBase"),
            *("MODEL.SPARSE_REFINE.BASE.SCALE", SCALE),
            *options,
        )
        weights = str(tmp_path / "model.safetensors")
        save_weights(Trainer.build_model(cfg).state_dict(), weights)
        cfg.MODEL.WEIGHTS = weights
        (tmp_path / "given.yaml").write_text(cfg.dump())
        spec = importlib.util.spec_from_file_location("train_net", TRAIN_NET)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        given = ["--config-file", str(tmp_path / "given.yaml"), "--eval-only"]
        return module.main(default_argument_parser().parse_args(given))

    return run


@pytest.fixture
def dataset(tmp_path):
    """dataset(truths) -> name and dicts of a data set of those label maps."""
    names = []

    def make(truths):
        names.append(f"{tmp_path.name}_{len(names)}")
        folder = tmp_path / names[-1]
        folder.mkdir()
        return names[-1], register(names[-1], folder, truths)

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
