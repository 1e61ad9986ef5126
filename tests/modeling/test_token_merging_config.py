# SPDX-License-Identifier: Apache-2.0
"""Token merging from yaml."""

from __future__ import annotations

import pytest

from sparse_refine import HuggingFaceSegmentor, SparseRefine
from sparse_refine.modeling.token_merging import (
    PRESETS,
    Merge,
    StageMerging,
)
from sparse_refine.modeling.token_merging.applying import attention_stages
from sparse_refine.training.trainer import Trainer

from .merging import SEGFORMER

HUB = ["MODEL.HUGGING_FACE.CONFIG", {"model_type": "segformer", **SEGFORMER}]
STAGES = [
    {},
    {"key_value": {"cell": [2, 2], "rate": 0.6}},
    {"query": {"cell": [4, 4], "rate": 0.8, "reach": 1}},
    {"query": {"cell": [2, 2]}},
]


def settings_of(model) -> list[StageMerging]:
    return [blocks[0].forward.args[1] for blocks in attention_stages(model).values()]


@pytest.mark.parametrize(
    "key", ["MODEL.META_ARCHITECTURE", "MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE"]
)
def test_from_a_config(make_cfg, key):
    """The dense model, and the base of SparseRefine."""
    for options, expected in (
        (["PRESET", "hq_near"], list(PRESETS["hq_near"])),
        (
            ["STAGES", STAGES],
            [
                StageMerging(),
                StageMerging(key_value=Merge((2, 2), 0.6)),
                StageMerging(query=Merge((4, 4), 0.8, 1)),
                StageMerging(query=Merge((2, 2))),
            ],
        ),
    ):
        cfg = make_cfg(
            key, "HuggingFaceSegmentor", *HUB, f"MODEL.TOKEN_MERGING.{options[0]}", options[1]
        )
        model = Trainer.build_model(cfg)
        if key == "MODEL.META_ARCHITECTURE":
            assert isinstance(model, HuggingFaceSegmentor)
        else:
            assert isinstance(model, SparseRefine)
        assert settings_of(model) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        (["PRESET", "fats"], "TOKEN_MERGING.PRESET is 'fats'"),
        (["PRESET", "hq", "MODEL.TOKEN_MERGING.STAGES", STAGES], "'hq' and STAGES has 4 entries"),
        (["STAGES", STAGES[:2]], "has 2 entries and the model 4 stages"),
        (["STAGES", [1, {}, {}, {}]], r"STAGES\[0\] is 1: a mapping of query, key_value"),
        (["STAGES", [{"keys": {}}, {}, {}, {}]], r"STAGES\[0\] is {'keys': {}}"),
        (["STAGES", [{}, {"query": {"rate": 0.5}}, {}, {}]], r"STAGES\[1\].query .* needs 'cell'"),
        (["STAGES", [{}, {"query": {"cell": 2}}, {}, {}]], r"STAGES\[1\].query: cell is 2"),
        (["STAGES", [{"query": {"cell": [2, 2], "rate": 2}}, {}, {}, {}]], "query: rate is 2"),
    ],
)
def test_config_errors(make_cfg, options, message):
    cfg = make_cfg(
        "MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE",
        "HuggingFaceSegmentor",
        *HUB,
        f"MODEL.TOKEN_MERGING.{options[0]}",
        *options[1:],
    )
    with pytest.raises(ValueError, match=message):
        Trainer.build_model(cfg)
