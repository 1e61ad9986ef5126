# SPDX-License-Identifier: Apache-2.0
"""A model of transformers with its own weights, evaluated and used to predict by itself: the
number that its refined self is compared with."""

import numpy as np
import pytest
import torch

from sparse_refine import SparseRefinePredictor
from sparse_refine.inference import load_model
from sparse_refine.training.trainer import Trainer

from .hugging_face import NODE, K, encoder_only, image_of, run, saved, segformer_config


@pytest.fixture
def cfg_of(make_cfg, tiny_dataset, tmp_path):
    def make(*options):
        return make_cfg(
            "MODEL.META_ARCHITECTURE", "HuggingFaceSegmentor",
            NODE + "NAME", str(tmp_path / "hub"),
            "DATASETS.TEST", (tiny_dataset(),),
            "OUTPUT_DIR", str(tmp_path / "out"),
            *options,
        )  # fmt: skip

    return make


def test_evaluates_and_predicts_without_a_checkpoint(cfg_of, tmp_path):
    reference = saved(tmp_path / "hub", segformer_config())
    cfg = cfg_of()
    model = load_model(cfg)
    own = reference.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.model.state_dict().items())
    results = Trainer.test(cfg, model)
    assert 0 <= results["sparse_refine"]["mIoU"] <= 100
    image = image_of(40, 56)
    labels = SparseRefinePredictor(cfg)(np.ascontiguousarray(image.permute(1, 2, 0)))["labels"]
    assert torch.equal(labels.long(), run(model, image, height=40, width=56).argmax(0))


def test_without_pretrained_weights_a_checkpoint_is_needed(cfg_of, tmp_path):
    saved(tmp_path / "hub", segformer_config(num_labels=K))
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is ''"):
        load_model(cfg_of(NODE + "PRETRAINED", False))


@pytest.mark.parametrize("lacking", ["head", "classes"])
def test_a_head_without_weights_is_not_evaluated(cfg_of, tmp_path, lacking):
    """It starts from random numbers, for a training that follows."""
    if lacking == "head":
        encoder_only(tmp_path / "hub")
    else:
        saved(tmp_path / "hub", segformer_config(num_labels=K + 2))
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is ''"):
        load_model(cfg_of())
    model = Trainer.build_model(cfg_of())
    assert any("classifier" in name for name in model.started_anew)
