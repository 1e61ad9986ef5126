# SPDX-License-Identifier: Apache-2.0
"""What Detectron2's PointRend needs of a config and does not check."""

from __future__ import annotations

from detectron2.config import CfgNode


def check_point_rend(cfg: CfgNode) -> None:
    """Check the keys of PointRend's semantic head; a config without that head passes.

    Raises:
        ValueError: 2**SUBDIVISION_STEPS is not COMMON_STRIDE. The head would predict the top left
            corner of an image alone (facebookresearch/detectron2#3693).
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NAME != "PointRendSemSegHead":
        return
    steps = cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS
    if 2**steps != head.COMMON_STRIDE:
        raise ValueError(
            f"MODEL.POINT_HEAD.SUBDIVISION_STEPS is {steps} and "
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE {head.COMMON_STRIDE}: PointRend needs "
            "2**SUBDIVISION_STEPS == COMMON_STRIDE"
        )
