# SPDX-License-Identifier: Apache-2.0
"""MaskFormer, Mask2Former and their kin, from their own Detectron2 projects, for inference.

A yaml brings the project in by name: `PROJECTS: ["mask2former:add_maskformer2_config"]`, from a
checkout on PYTHONPATH or from an installed package; PEM's is "pem:add_maskformer2_config". Nothing
of Mask2Former has to be compiled: it falls back to plain PyTorch for deformable attention. PEM's
pixel decoder needs the deformable convolution of a compiled Detectron2.
"""

from __future__ import annotations

from types import MethodType

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from torch import nn


@META_ARCH_REGISTRY.register()
def FrozenMaskFormer(cfg: CfgNode) -> nn.Module:
    """The project's own `MaskFormer`, built from its own keys, without its training criterion.

    The criterion is all that it lacks: it cannot be trained, its other weights have the names that
    the project's checkpoints have, and the package `maskformer2` 0.1, whose `MaskFormer(cfg)` calls
    a criterion of another signature, builds too. `sem_seg` holds scores (sum over queries of
    softmax(class) * sigmoid(mask)): MODEL.SPARSE_REFINE.BASE.SCORE_TYPE must be "scores".

    Raises:
        ValueError: the yaml names no project that registers `MaskFormer` and declares its keys; or
            PANOPTIC_ON, and the data set does not say which classes are things.
    """
    if "MaskFormer" not in META_ARCH_REGISTRY or "MASK_FORMER" not in cfg.MODEL:
        raise ValueError(
            "FrozenMaskFormer needs the project that it is in: put PROJECTS: "
            '["mask2former:add_maskformer2_config"] into the yaml, and a checkout of Mask2Former '
            "on PYTHONPATH (or pip install --no-deps maskformer2)"
        )
    node = cfg.MODEL.MASK_FORMER
    backbone = build_backbone(cfg)
    model = META_ARCH_REGISTRY.get("MaskFormer")(
        backbone=backbone,
        sem_seg_head=build_sem_seg_head(cfg, backbone.output_shape()),
        criterion=None,
        num_queries=node.NUM_OBJECT_QUERIES,
        object_mask_threshold=node.TEST.OBJECT_MASK_THRESHOLD,
        overlap_threshold=node.TEST.OVERLAP_THRESHOLD,
        metadata=_metadata(cfg),
        size_divisibility=node.SIZE_DIVISIBILITY,
        sem_seg_postprocess_before_inference=(
            node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
            or node.TEST.PANOPTIC_ON
            or node.TEST.INSTANCE_ON
        ),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        semantic_on=node.TEST.SEMANTIC_ON,
        panoptic_on=node.TEST.PANOPTIC_ON,
        instance_on=node.TEST.INSTANCE_ON,
        test_topk_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    # The package's head takes weights without version numbers (safetensors, .pkl) for those of its
    # predecessor and renames them. Names are checked where weights are loaded.
    head = model.sem_seg_head
    head._load_from_state_dict = MethodType(nn.Module._load_from_state_dict, head)
    model.score_type = "scores"
    return model.eval()


def _metadata(cfg: CfgNode):
    """Of the first training set: which classes are things, where panoptic maps are wanted."""
    if not cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON:
        return None
    for name in cfg.DATASETS.TRAIN[:1]:
        metadata = MetadataCatalog.get(name)
        if hasattr(metadata, "thing_dataset_id_to_contiguous_id"):
            return metadata
    raise ValueError(
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON is True, but the first data set of DATASETS.TRAIN "
        f"({cfg.DATASETS.TRAIN}) does not say which classes are things: put one there that does "
        "(as cityscapes_fine_panoptic_train), or set PANOPTIC_ON False"
    )
