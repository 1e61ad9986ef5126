# SPDX-License-Identifier: Apache-2.0
"""Predictors and the predict command with a tiny random model, and files for them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine.commands import predict
from sparse_refine.inference.predictor import SparseRefinePredictor
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer


@pytest.fixture
def model(tmp_path, make_cfg):
    """write(*options of the config) -> [--config-file, C, --weights, W], random ones."""

    def write(*options) -> list[str]:
        torch.manual_seed(0)
        cfg = make_cfg(*options)
        yaml, weights = tmp_path / "model.yaml", tmp_path / "model.safetensors"
        yaml.write_text(cfg.dump())
        save_weights(Trainer.build_model(cfg).state_dict(), str(weights))
        return ["--config-file", str(yaml), "--weights", str(weights)]

    return write


@pytest.fixture
def run(monkeypatch, tmp_path, model):
    """run(*arguments, model options) -> exit code, writing to tmp_path/out."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back at the end

    def main(*arguments, options=()) -> int:
        try:
            first = [] if "--model" in arguments else model(*options)
            rest = ["--output", tmp_path / "out", *arguments]
            return predict.main([str(argument) for argument in (*first, *rest)])
        except SystemExit as error:  # argparse
            return error.code

    return main


@pytest.fixture
def picture():
    """picture(seed, size) -> (H,W,3) uint8."""
    return _picture


@pytest.fixture
def save():
    """save(path, seed, **options of picture) -> the path of an image."""
    return _save


@pytest.fixture
def video():
    """video(path, frames, rate, size) -> the path of one."""
    return _video


@pytest.fixture
def written():
    """written(folder) -> names of its files."""
    return _written


@pytest.fixture
def predicted():
    """predicted(model, path) -> labels (H,W), as the predictor gives them."""
    return _predicted


def _picture(seed: int = 0, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def _save(path: Path, seed: int = 0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_picture(seed, **options)).save(path)
    return path


def _video(path: Path, frames: int = 6, rate: float = 12.5, size=(48, 64)) -> Path:
    """Frames that turn from dark to light, so that their order can be told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "MJPG" if path.suffix == ".avi" else "mp4v"
    file = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*kind), rate, size[::-1])
    for index in range(frames):
        file.write(_picture(0, size) // 8 + np.uint8(35 * index % 210))
    file.release()
    return path


def _written(folder: Path) -> list[str]:
    """Files of the output but for the journal; hidden ones, unfinished ones, too."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".sparse_refine_demo.jsonl"
    )


def _predicted(model, path: Path) -> np.ndarray:
    _, config, _, weights = model()
    return SparseRefinePredictor(config, weights)(path)["labels"].numpy()


@pytest.fixture
def weights(tmp_path, make_cfg):
    """save(*options of the config) -> path of random weights of its model, always the same."""

    def save(*options) -> str:
        torch.manual_seed(0)
        path = tmp_path / "weights.safetensors"
        save_weights(Trainer.build_model(make_cfg(*options)).state_dict(), str(path))
        return str(path)

    return save


@pytest.fixture
def predictor(make_cfg, weights):
    """make(*options of the config) -> predictor."""
    return lambda *options: SparseRefinePredictor(make_cfg(*options), weights(*options))


@pytest.fixture
def image() -> np.ndarray:
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    noise = random.integers(0, 30, (48, 64, 3), dtype=np.uint8)
    return cv2.resize(blocks, (64, 48), interpolation=cv2.INTER_LINEAR) // 2 + noise
