# SPDX-License-Identifier: Apache-2.0
"""A model and data of one's own, in one yaml, by train_net.py: dense, then refined, then scored."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.commands.train import argument_parser

TRAIN_NET = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "train_net.py"
MODEL = """
import torch


class Net(torch.nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.down = torch.nn.Conv2d(3, channels, 4, 4)
        self.out = torch.nn.Conv2d(channels, classes, 1)

    def forward(self, images):
        return self.out(self.down(images).relu())
"""
YAML = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: SparseRefine
  WEIGHTS: ""
  DEVICE: cpu
  MODULE:
    PATH: "{root}/net.py:Net"
    ARGS:
      classes: 3
      channels: 8
    SIZE_DIVISIBILITY: 4
  SEM_SEG_HEAD:
    NUM_CLASSES: 3
  PIXEL_MEAN: [127.0, 127.0, 127.0]
  PIXEL_STD: [64.0, 64.0, 64.0]
  SPARSE_REFINE:
    BASE:
      META_ARCHITECTURE: ModuleSegmentor
    SELECTOR:
      NAME: BudgetSelector
    EXTRACTOR:
      PRESET: custom
      CHANNELS: [4, 8]
DATASETS:
  FOLDERS:
    - ["own_model_data", "{root}/images", "{root}/labels"]
  CLASS_NAMES: ["soil", "crop", "weed"]
  TRAIN: ("own_model_data",)
  TEST: ("own_model_data",)
INPUT:
  FORMAT: "RGB"
  RANDOM_FLIP: "horizontal"
  RESIZE_RANGE: [1.0, 1.0]
  CROP: {{ENABLED: True, TYPE: "absolute", SIZE: [24, 32]}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 4, BASE_LR: 0.01, WARMUP_ITERS: 0}}
DATALOADER: {{NUM_WORKERS: 0}}
SEED: 1
"""


def train_net(*arguments):
    spec = importlib.util.spec_from_file_location("train_net", TRAIN_NET)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(argument_parser().parse_args(["--trust-code", *map(str, arguments)]))


@pytest.fixture
def folders(tmp_path):
    """Images and labels as a user has them; what the yaml registers is taken back."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    generator = np.random.default_rng(0)
    for index in range(4):
        labels = generator.integers(0, 3, (5, 7)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        image = (labels[..., None] * 80 + generator.integers(0, 40, (40, 56, 3))).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{index}.png")
    yield tmp_path
    DatasetCatalog.remove("own_model_data")
    MetadataCatalog.remove("own_model_data")


@pytest.mark.slow
def test_a_model_of_ones_own(folders, quiet_logs):
    tmp_path = folders
    yaml = tmp_path / "own.yaml"
    (tmp_path / "net.py").write_text(MODEL)
    yaml.write_text(YAML.format(root=tmp_path))
    dense = ["MODEL.META_ARCHITECTURE", "ModuleSegmentor", "INPUT.SCALE", 0.5]

    train_net("--config-file", yaml, *dense, "OUTPUT_DIR", tmp_path / "dense")
    base = ["MODEL.SPARSE_REFINE.BASE.WEIGHTS", tmp_path / "dense" / "model_final.pth"]
    train_net("--config-file", yaml, *base, "OUTPUT_DIR", tmp_path / "refined")

    weights = ["MODEL.WEIGHTS", tmp_path / "refined" / "model_final.pth"]
    results = train_net(
        *("--config-file", yaml, "--eval-only", *weights, "OUTPUT_DIR", tmp_path / "refined")
    )
    assert 0 <= results["sparse_refine"]["mIoU"] <= 100
