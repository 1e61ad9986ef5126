# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several folders share."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from .tiny import register_tiny, tiny_cfg

# One thread: the same bits on every run, whatever else the machine does, and on tensors this small
# faster. Programs that tests start, and engines with threads of their own, read the variable.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.fixture
def datasets_root() -> Path:
    """The folder of real data; the test is skipped where there is none."""
    root = os.environ.get("DETECTRON2_DATASETS", "")
    if not root or not Path(root, "rgbweed").is_dir():
        pytest.skip(
            "real data: set DETECTRON2_DATASETS to a folder that holds rgbweed/ and camvid/ "
            f"(it is {root!r})"
        )
    return Path(root)


@pytest.fixture(scope="session")
def make_cfg():
    """`tiny_cfg`."""
    return tiny_cfg


@pytest.fixture
def tiny_dataset(tmp_path):
    """make(**options of register_tiny) -> name of a registered data set in tmp_path."""
    names = []

    def make(**options) -> str:
        name = f"{tmp_path.name}_{len(names)}"
        names.append(name)
        return register_tiny(name, tmp_path / name, **options)

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def quiet_logs():
    """Detectron2's setup_logger adds handlers and cuts propagation for good: put that back."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "sparse_refine")]
    before = [(log.propagate, log.level, list(log.handlers)) for log in loggers]
    yield
    for log, (propagate, level, handlers) in zip(loggers, before):
        log.propagate = propagate
        log.setLevel(level)
        log.handlers = handlers
