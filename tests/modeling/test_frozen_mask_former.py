# SPDX-License-Identifier: Apache-2.0
"""Mask2Former's own project: the same numbers wrapped as unwrapped, weights, other outputs."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from sparse_refine import SparseRefine
from sparse_refine.base import build_base
from sparse_refine.config import load_config
from sparse_refine.resampling import downsample
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "configs"
CONFIG = CONFIGS / "cityscapes" / "mask2former_t.yaml"
BASE = "MODEL.SPARSE_REFINE.BASE."
# fmt: off
TINY = [
    "MODEL.SWIN.EMBED_DIM", 12, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 4], "MODEL.SWIN.WINDOW_SIZE", 4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.MASK_FORMER.HIDDEN_DIM", 32,
    "MODEL.MASK_FORMER.NHEADS", 4, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32,
    "MODEL.MASK_FORMER.DEC_LAYERS", 3, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7,
    "MODEL.SPARSE_REFINE.EXTRACTOR.PRESET", "custom",
    "MODEL.SPARSE_REFINE.EXTRACTOR.CHANNELS", [4, 8],
    "MODEL.SPARSE_REFINE.EXTRACTOR.BACKEND", "torch",
]
# fmt: on


@pytest.fixture
def tiny():
    """make(*options) -> config of a small Mask2Former under SparseRefine."""
    pytest.importorskip("scipy", reason="Mask2Former's matcher needs scipy")
    try:
        from sparse_refine.modeling.importing import import_projects

        import_projects(None, ["mask2former"])
    except ImportError:
        pytest.skip("Mask2Former is on no path: a checkout on PYTHONPATH, or maskformer2==0.1")

    def make(*options):
        return load_config(str(CONFIG), [*TINY, *options])

    return make


def image_of(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def test_sparse_refine_is_the_project_where_nothing_is_refined(tiny):
    """Coarse labels and logits: the project's own model, called by hand on the small image."""
    cfg = tiny("MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD", 99.0)
    model = Trainer.build_model(cfg).eval()
    base, image = model.coarse.base, image_of(150, 202)
    assert type(base) is META_ARCH_REGISTRY.get("MaskFormer") and base.criterion is None
    with torch.inference_mode():
        (output,) = model([{"image": image}])
        small = downsample(image, (75, 101))
        (alone,) = base([{"image": small, "height": 75, "width": 101}])
    scores = alone["sem_seg"]
    assert scores.min() >= 0 and scores.sum(0).max() > 1.5  # neither logits nor probabilities
    expected = (scores / scores.sum(0)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(output["sem_seg"].softmax(0), expected, atol=1e-5)


def test_the_model_is_the_projects_by_hand(tiny):
    """Its `sem_seg`, from the outputs of its backbone and its head."""
    base = build_base(tiny())
    image = image_of(75, 101)
    pixels = (image - base.pixel_mean) / base.pixel_std
    pixels = torch.nn.functional.pad(pixels, (0, 27, 0, 21))[None]
    with torch.inference_mode():
        (answer,) = base([{"image": image}])
        out = base.sem_seg_head(base.backbone(pixels))
        masks = torch.nn.functional.interpolate(out["pred_masks"], (96, 128), mode="bilinear")
    classes = out["pred_logits"][0].softmax(1)[:, :19]
    expected = (classes[:, :, None, None] * masks[0].sigmoid()[:, None]).sum(0)[:, :75, :101]
    assert torch.allclose(answer["sem_seg"], expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pkl"])
def test_weights_arrive(tiny, tmp_path, kind):
    """In each format; the package's head would rename them on the way, without a word."""
    source = build_base(tiny())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    state = source.state_dict()
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_weights(state, path)
    elif kind == "pth":
        torch.save({"model": dict(state)}, path)
    else:
        import pickle

        arrays = {name: np.asarray(tensor) for name, tensor in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}))
    options = [BASE + "WEIGHTS", str(path), "MODEL.ALLOW_PICKLE", kind == "pkl"]
    base = build_base(tiny(*options))
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())


def test_score_type_is_held_against_the_base(tiny):
    with pytest.raises(ValueError, match=r"MaskFormer returns scores.*SCORE_TYPE to 'scores'"):
        Trainer.build_model(tiny(BASE + "SCORE_TYPE", "logits"))


def test_panoptic_and_instances_come_at_full_size(tiny):
    name = "frozen_mask_former_things"
    MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id={24: 11, 25: 12})
    cfg = tiny(
        *("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True, "DATASETS.TRAIN", (name,)),
        *("MODEL.MASK_FORMER.TEST.INSTANCE_ON", True, "TEST.DETECTIONS_PER_IMAGE", 5),
    )
    model = Trainer.build_model(cfg).eval()
    with torch.no_grad():  # queries that are sure of a class
        model.coarse.base.sem_seg_head.predictor.class_embed.weight.normal_(std=2)
    with torch.inference_mode():
        (output,) = model([{"image": image_of(150, 202), "height": 75, "width": 100}])
    ids, segments = output["panoptic_seg"]
    assert ids.shape == (75, 100) and len(segments) >= 1
    assert {segment["id"] for segment in segments} >= set(ids.unique().tolist()) - {0}
    instances = output["instances"]
    assert instances.image_size == (75, 100)
    assert tuple(instances.pred_masks.shape[1:]) == (75, 100)
    assert output["sem_seg"].shape == (19, 75, 100)


def test_panoptic_needs_to_know_the_things(tiny):
    with pytest.raises(ValueError, match="does not say which classes are things"):
        build_base(tiny("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True))


def test_compiled_operators_are_not_pretended_to_be_there(tiny):
    tiny()
    for name in ("detectron2._C", "MultiScaleDeformableAttention"):
        module = sys.modules.get(name)
        assert module is None or getattr(module, "__file__", None)


def test_the_projects_defaults_do_not_replace_ours(tiny):
    assert tiny().SOLVER.BACKBONE_MULTIPLIER == 1.0  # the project's own is 0.1


def test_wrap(tiny):
    model = SparseRefine.wrap(build_base(tiny()), num_classes=19)
    assert model.coarse.score_type == "scores" and model.coarse.base.criterion is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_as_on_the_cpu(tiny):
    base, image = build_base(tiny()), image_of(75, 101)
    with torch.inference_mode():
        (on_cpu,) = base([{"image": image}])
        (on_gpu,) = base.cuda()([{"image": image}])
    assert torch.allclose(on_gpu["sem_seg"].cpu(), on_cpu["sem_seg"], atol=1e-3)


def test_a_dense_arm(tiny):
    """By itself at full resolution, for evaluation and timing."""
    model = Trainer.build_model(tiny("MODEL.META_ARCHITECTURE", "FrozenMaskFormer")).eval()
    with torch.inference_mode():
        (output,) = model([{"image": image_of(75, 101)}])
    assert output["sem_seg"].shape == (19, 75, 101)


@pytest.mark.parametrize("imported", [False, True])
def test_without_the_project(make_cfg, monkeypatch, imported):
    if imported:  # by another yaml of the same process: this one lacks the keys
        monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "MaskFormer", object)
    else:
        monkeypatch.delitem(META_ARCH_REGISTRY._obj_map, "MaskFormer", raising=False)
    cfg = make_cfg(BASE + "META_ARCHITECTURE", "FrozenMaskFormer")
    with pytest.raises(ValueError, match="PROJECTS: .*mask2former:add_maskformer2_config"):
        build_base(cfg)
