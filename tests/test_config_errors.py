# SPDX-License-Identifier: Apache-2.0
"""Impossible values are stopped when the model or the mapper is built."""

import re

import pytest
import torch

from sparse_refine import SparseRefine
from sparse_refine.data import SegmentationMapper
from sparse_refine.training.trainer import Trainer

METHOD = "MODEL.SPARSE_REFINE."


def budget(key, value):
    return [METHOD + "SELECTOR.NAME", "BudgetSelector", METHOD + "SELECTOR." + key, value]


MODEL_ERRORS = [
    ([METHOD + "OUTPUT", "label"], "OUTPUT", "'label'"),
    ([METHOD + "COARSE_INTERPOLATION", "cubic"], "COARSE_INTERPOLATION", "'cubic'"),
    ([METHOD + "BASE.SCALE", 0.0], "BASE.SCALE", "0.0"),
    ([METHOD + "BASE.SCALE", 1.5], "BASE.SCALE", "1.5"),
    ([METHOD + "BASE.SCALE", -0.5], "BASE.SCALE", "-0.5"),
    ([METHOD + "BASE.SCALE", float("nan")], "BASE.SCALE", "nan"),
    ([METHOD + "BASE.SCORE_TYPE", "softmax"], "BASE.SCORE_TYPE", "'softmax'"),
    ([METHOD + "BASE.TEMPERATURE", 0.0], "BASE.TEMPERATURE", "0.0"),
    ([METHOD + "BASE.TEMPERATURE", float("nan")], "BASE.TEMPERATURE", "nan"),
    ([METHOD + "BASE.META_ARCHITECTURE", "SparseRefine"], "BASE.META_ARCHITECTURE", "itself"),
    ([METHOD + "SELECTOR.THRESHOLD", -0.1], "SELECTOR.THRESHOLD", "-0.1"),
    ([METHOD + "SELECTOR.THRESHOLD", float("nan")], "SELECTOR.THRESHOLD", "nan"),
    (
        [METHOD + "SELECTOR.NAME", "MarginSelector", METHOD + "SELECTOR.THRESHOLD", 1.5],
        "SELECTOR.THRESHOLD",
        "1.5",
    ),
    (budget("FRACTION", 1.5), "SELECTOR.FRACTION", "1.5"),
    (budget("FRACTION", -0.1), "SELECTOR.FRACTION", "-0.1"),
    (budget("COUNT", -2), "SELECTOR.COUNT", "-2"),
    ([METHOD + "EXTRACTOR.FEATURES", []], "EXTRACTOR.FEATURES", "[]"),
    ([METHOD + "EXTRACTOR.FEATURES", ["rgb", "depth"]], "EXTRACTOR.FEATURES", "'depth'"),
    ([METHOD + "EXTRACTOR.PRESET", "huge"], "EXTRACTOR.PRESET", "'huge'"),
    ([METHOD + "EXTRACTOR.CHANNELS", []], "EXTRACTOR.CHANNELS", "[]"),
    ([METHOD + "EXTRACTOR.CHANNELS", [8, 0]], "EXTRACTOR.CHANNELS", "[8, 0]"),
    ([METHOD + "EXTRACTOR.BLOCKS", 0], "BLOCKS", "0"),
    ([METHOD + "EXTRACTOR.NORM", "LN"], "EXTRACTOR.NORM", "'LN'"),
    ([METHOD + "EXTRACTOR.DOWNSAMPLE_SITES", "round"], "EXTRACTOR.DOWNSAMPLE_SITES", "'round'"),
    ([METHOD + "EXTRACTOR.BACKEND", "spconv"], "EXTRACTOR.BACKEND", "'spconv'"),
    ([METHOD + "ENSEMBLER.HIDDEN", 0], "ENSEMBLER.HIDDEN", "0"),
    ([METHOD + "LOSS.FUSED_WEIGHT", -1.0], "LOSS.FUSED_WEIGHT", "-1.0"),
    ([METHOD + "LOSS.DICE_WEIGHT", float("nan")], "LOSS.DICE_WEIGHT", "nan"),
    (
        [METHOD + "LOSS.REFINED_WEIGHT", 0.0, METHOD + "LOSS.FUSED_WEIGHT", 0.0],
        "MODEL.SPARSE_REFINE.LOSS",
        "0",
    ),
    (["MODEL.PIXEL_STD", [1.0, 0.0, 1.0]], "MODEL.PIXEL_STD", "0.0"),
    ([METHOD + "EXTRACTOR.PIXEL_STD", [1.0, 0.0, 1.0]], "EXTRACTOR.PIXEL_STD", "0.0"),
    (["MODEL.PIXEL_MEAN", [1.0]], "MODEL.PIXEL_MEAN", "[1.0]"),
]


def test_the_refiner_may_have_its_own_mean_and_std(make_cfg):
    model = SparseRefine(make_cfg())
    own = model.extractor
    assert own.pixel_mean.tolist() == [[127.0] * 3] and own.pixel_std.tolist() == [[64.0] * 3]
    model = SparseRefine(make_cfg(METHOD + "EXTRACTOR.PIXEL_MEAN", [1.0, 2.0, 3.0]))
    assert model.extractor.pixel_mean.tolist() == [[1.0, 2.0, 3.0]]
    assert model.extractor.pixel_std.tolist() == [[64.0] * 3]


@pytest.mark.parametrize("options, key, value", MODEL_ERRORS, ids=lambda part: str(part)[-40:])
def test_impossible_values_of_the_model(make_cfg, options, key, value):
    cfg = make_cfg(*options)
    with pytest.raises(ValueError, match=re.escape(key)) as error:
        SparseRefine(cfg)
    assert value in str(error.value)


@pytest.mark.parametrize(
    "options, key, value",
    [
        (["INPUT.RESIZE_RANGE", [2.0, 0.5]], "INPUT.RESIZE_RANGE", "[2.0, 0.5]"),
        (["INPUT.RESIZE_RANGE", [0.0, 1.0]], "INPUT.RESIZE_RANGE", "[0.0, 1.0]"),
        (["INPUT.RESIZE_RANGE", [1.0]], "INPUT.RESIZE_RANGE", "[1.0]"),
        (["INPUT.SCALE", 0.0], "INPUT.SCALE", "0.0"),
        (["INPUT.RANDOM_FLIP", "vertical"], "INPUT.RANDOM_FLIP", "'vertical'"),
        (["INPUT.FORMAT", "YUV"], "INPUT.FORMAT", "'YUV'"),
        (["INPUT.CROP.TYPE", "relative"], "INPUT.CROP.TYPE", "'relative'"),
        (["INPUT.CROP.SIZE", [0, 8]], "INPUT.CROP", "[0, 8]"),
        (["INPUT.CROP.SIZE", [8]], "INPUT.CROP", "[8]"),
        (
            ["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0],
            "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
            "0.0",
        ),
        (
            [METHOD + "COARSE_CACHE", "folder", "INPUT.RESIZE_RANGE", [0.5, 2.0]],
            "INPUT.RESIZE_RANGE",
            "[0.5, 2.0]",
        ),
    ],
    ids=lambda part: str(part)[-40:],
)
def test_impossible_values_of_the_data(make_cfg, options, key, value):
    cfg = make_cfg(*options)
    with pytest.raises(ValueError, match=re.escape(key)) as error:
        SegmentationMapper(cfg, is_train=True)
    assert value in str(error.value)


def test_a_cache_without_resizing_is_fine(make_cfg):
    cfg = make_cfg(METHOD + "COARSE_CACHE", "folder", "INPUT.RESIZE_RANGE", [1.0, 1.0])
    assert SegmentationMapper(cfg, is_train=True).plain_context


def test_unknown_optimizer(make_cfg):
    cfg = make_cfg("SOLVER.OPTIMIZER", "LION")
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is 'LION': one of 'ADAMW', 'SGD'"):
        Trainer.build_optimizer(cfg, torch.nn.Linear(2, 2))


@pytest.mark.parametrize("classes", [0, -3])
def test_impossible_class_counts(make_cfg, classes):
    with pytest.raises(ValueError, match=rf"MODEL.SEM_SEG_HEAD.NUM_CLASSES.*{classes}"):
        SparseRefine(make_cfg("MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes))


@pytest.mark.parametrize(
    "key, known",
    [
        (
            "SELECTOR.NAME",
            "BudgetSelector, EntropySelector, MarginBudgetSelector, MarginSelector, "
            "RandomBudgetSelector",
        ),
        ("EXTRACTOR.NAME", "SparseUNetExtractor"),
        ("ENSEMBLER.NAME", "EntropyEnsembler, GatedEnsembler, RefinedEnsembler"),
        ("BASE.META_ARCHITECTURE", "SemanticSegmentor"),
    ],
)
def test_an_unknown_name_lists_the_known(make_cfg, key, known):
    cfg = make_cfg(METHOD + key, "Nonesuch")
    with pytest.raises(ValueError, match=re.escape(METHOD + key)) as error:
        SparseRefine(cfg)
    assert "'Nonesuch'" in str(error.value) and known in str(error.value)
