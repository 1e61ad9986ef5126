# SPDX-License-Identifier: Apache-2.0
"""Models of transformers: what config and processor say, whose weights are loaded."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sparse_refine import HuggingFaceSegmentor
from sparse_refine.base import build_base
from sparse_refine.training.trainer import Trainer

from .hugging_face import (
    NODE,
    K,
    encoder_only,
    hugging_face,
    image_of,
    run,
    saved,
    segformer_config,
    transformers,
    upernet_config,
)

# ---- what a config and a processor say -----------------------------------------------------------


def test_a_model_described_in_yaml(make_cfg, tmp_path):
    text = """
MODEL:
  HUGGING_FACE:
    CONFIG:
      model_type: mask2former
      backbone_config: {model_type: swin, embed_dim: 12, depths: [1, 1, 1, 1],
        num_heads: [1, 2, 2, 4], window_size: 4,
        out_features: ["stage1", "stage2", "stage3", "stage4"]}
      hidden_dim: 32
      feature_size: 32
      mask_feature_size: 32
      encoder_layers: 1
      decoder_layers: 2
      num_attention_heads: 2
      num_queries: 7
"""
    (tmp_path / "c.yaml").write_text(text)
    cfg = make_cfg("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "HuggingFaceSegmentor")
    cfg.merge_from_file(str(tmp_path / "c.yaml"))
    base = build_base(cfg)
    assert base.universal and base.model.config.num_labels == K
    assert base.pixel_mean.flatten().tolist() == [127] * 3  # MODEL.PIXEL_MEAN: nobody else says
    assert run(base.eval(), image_of(64, 64)).shape == (K, 64, 64)


def test_without_a_processor_the_configs_mean_holds(make_cfg, tmp_path):
    saved(tmp_path, segformer_config(), processor=False)
    base = hugging_face(make_cfg, NODE + "NAME", str(tmp_path))
    assert base.pixel_std.flatten().tolist() == [64] * 3
    saved(tmp_path, segformer_config(), image_mean=[0.5] * 3, rescale_factor=1 / 127.5)
    base = hugging_face(make_cfg, NODE + "NAME", str(tmp_path))
    assert base.pixel_mean.flatten().tolist() == pytest.approx([63.75] * 3)


@pytest.mark.parametrize("names", [["b", "C", "a"], ["x", "y", "z"]])
def test_classes_take_the_data_sets_order(make_cfg, tmp_path, names, caplog):
    saved(tmp_path, segformer_config(id2label={0: "a", 1: "b", 2: "c"}))
    plain = hugging_face(make_cfg, NODE + "NAME", str(tmp_path))
    other = hugging_face(make_cfg, NODE + "NAME", str(tmp_path), "DATASETS.CLASS_NAMES", names)
    before, after = (run(model, image_of(64, 64)) for model in (plain, other))
    if names[0] == "b":
        assert torch.equal(before[[1, 2, 0]], after) and other.class_names == ["b", "c", "a"]
    else:
        assert torch.equal(before, after) and "'a' for 'x'" in caplog.text


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "NAME is '' and CONFIG has no 'model_type'"),
        ([NODE + "NAME", "no/such/folder/there"], "'no/such/folder/there'.*no config"),
        (["NAME", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5], "predicts 3 classes but .* is 5"),
        (["NAME", "MODEL.SPARSE_REFINE.BASE.SCORE_TYPE", "scores"], "returns logits.*'scores'"),
    ],
)
def test_what_does_not_fit(make_cfg, tmp_path, options, message):
    if options[:1] == ["NAME"]:
        saved(tmp_path, segformer_config())
        options = [NODE + "NAME", str(tmp_path), *options[1:]]
    cfg = make_cfg("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "HuggingFaceSegmentor", *options)
    with pytest.raises(ValueError, match=message):
        Trainer.build_model(cfg)


def test_no_segmentation_model(make_cfg, tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert' is no segmentation model.*segformer"):
        hugging_face(make_cfg, NODE + "NAME", str(tmp_path))


# ---- weights -------------------------------------------------------------------------------------


def test_a_frozen_base_starts_nothing_anew(make_cfg, tmp_path):
    encoder_only(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ tensors of Segformer.*decode_head"):
        hugging_face(make_cfg, NODE + "NAME", str(tmp_path))


def test_a_dense_model_does_and_is_a_base_afterwards(make_cfg, tmp_path, caplog):
    encoder_only(tmp_path / "hub")
    options = [NODE + "NAME", str(tmp_path / "hub"), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5]
    dense = Trainer.build_model(
        make_cfg("MODEL.META_ARCHITECTURE", "HuggingFaceSegmentor", *options)
    )
    assert "start from random numbers" in caplog.text and run(dense, image_of(40, 40)).shape[0] == 5
    weights = tmp_path / "model_final.safetensors"
    save_file(dense.state_dict(), weights)
    base = hugging_face(
        make_cfg,
        *options,
        *(NODE + "PRETRAINED", False, "MODEL.SPARSE_REFINE.BASE.WEIGHTS", str(weights)),
    )
    assert torch.equal(run(base, image_of(40, 40)), run(dense, image_of(40, 40)))


def test_a_dense_model_of_other_classes_gets_a_new_head(make_cfg, tmp_path, caplog):
    reference = saved(tmp_path, segformer_config())
    options = ["MODEL.META_ARCHITECTURE", "HuggingFaceSegmentor", NODE + "NAME", str(tmp_path)]
    model = Trainer.build_model(make_cfg(*options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5)).model
    assert "decode_head.classifier" in caplog.text
    assert model.decode_head.classifier.weight.shape[0] == 5
    name = "decode_head.linear_fuse.weight"
    assert torch.equal(model.state_dict()[name], reference.state_dict()[name])


def test_auxiliary_heads_are_left_out(tmp_path):
    """They cost time, nobody reads them, and DDP would wait for their gradients."""
    saved(tmp_path, upernet_config())
    model = HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    assert model.model.auxiliary_head is None


def test_weights_of_the_model_alone(make_cfg, tmp_path):
    reference = saved(tmp_path, segformer_config())
    weights = tmp_path / "alone.safetensors"
    save_file({name: tensor + 1 for name, tensor in reference.state_dict().items()}, weights)
    base = hugging_face(
        make_cfg,
        *(NODE + "NAME", str(tmp_path), NODE + "PRETRAINED", False),
        *("MODEL.SPARSE_REFINE.BASE.WEIGHTS", str(weights)),
    )
    name = "decode_head.classifier.bias"
    assert torch.equal(base.model.state_dict()[name], reference.state_dict()[name] + 1)


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["HARM"]),))


def test_pickled_weights_run_no_code(tmp_path, monkeypatch):
    reference = saved(tmp_path, segformer_config())
    (tmp_path / "model.safetensors").unlink()
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    model = HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    name = "decode_head.classifier.weight"
    assert torch.equal(model.model.state_dict()[name], reference.state_dict()[name])

    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    torch.save({**reference.state_dict(), "x": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises((pickle.UnpicklingError, RuntimeError, OSError, ValueError)):
        HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    assert not (tmp_path / "harm").exists()
