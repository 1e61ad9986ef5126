# SPDX-License-Identifier: Apache-2.0
"""Thresholds, schedule and size of the paper's bases."""

import pytest
from torch import nn

from sparse_refine.base import build_base
from sparse_refine.config import load_config

from ..marks import slow_except
from .shrunk import CONFIGS, needs

SELECTORS = {
    "hrnet_w48": (0.3, 0.5),
    "segformer_b5": (0.1, 0.5),
    "segformer_b5_mmseg": (0.1, 0.5),
    "segnext_l": (0.1, 0.625),
    "mask2former_t": (0.05, 0.5),
    "mask2former_l": (0.005, 0.5),
}


@pytest.mark.parametrize("name", SELECTORS)
def test_thresholds_and_sizes_of_the_paper(name):
    needs(name)
    cfg = load_config(str(CONFIGS / "cityscapes" / f"{name}.yaml"))
    node = cfg.MODEL.SPARSE_REFINE
    assert (node.SELECTOR.NAME, node.EXTRACTOR.PRESET) == ("EntropySelector", "paper")
    assert SELECTORS[name] == (node.SELECTOR.THRESHOLD, node.BASE.SCALE)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (0.0003, 32)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY) == ("ADAMW", 0.05)


# millions of parameters, as MMSegmentation, transformers and Mask2Former's project have them
SIZES = {
    "hrnet_w48": 65.9,
    "segformer_b5_mmseg": 82.0,
    "segnext_l": 48.8,
    "mask2former_t": 47.4,
    "mask2former_l": 215.5,
}


@pytest.mark.parametrize("name", slow_except(SIZES, "segformer_b5_mmseg"))
def test_size_of_the_papers_bases(name, monkeypatch):
    needs(name)
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: tensor)  # slow
    base = build_base(load_config(str(CONFIGS / "cityscapes" / f"{name}.yaml")))
    millions = sum(parameter.numel() for parameter in base.parameters()) / 1e6
    assert millions == pytest.approx(SIZES[name], rel=0.01)
