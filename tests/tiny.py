# SPDX-License-Identifier: Apache-2.0
"""A tiny base, config and data set, for tests and for the scripts that they run as processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import nn

from sparse_refine import add_sparse_refine_config
from sparse_refine.data import register_image_label_folder

TINY_CLASSES = ["soil", "crop", "weed"]
TINY_COLORS = np.array([[150, 110, 80], [60, 170, 60], [170, 190, 40]])


@META_ARCH_REGISTRY.register()
class TinyBase(nn.Module):
    """A base of two convolutions and a BatchNorm, one image at a time; it also trains by itself.

    `calls` collects the inputs of each forward call. Besides `sem_seg` it returns `panoptic_seg`.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 1)
        nn.init.normal_(self.head.weight, std=1.5)  # sure of some pixels, unsure of others
        self.ignore_label = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        self.calls: list[list[dict]] = []

    def forward(self, batched_inputs: list[dict]):
        self.calls.append(batched_inputs)
        if self.training:
            losses = [
                nn.functional.cross_entropy(
                    self._scores(item), item["sem_seg"][None], ignore_index=self.ignore_label
                )
                for item in batched_inputs
            ]
            return {"loss": torch.stack(losses).mean()}
        results = []
        for item in batched_inputs:
            scores = self._scores(item)
            size = item.get("height", scores.shape[-2]), item.get("width", scores.shape[-1])
            if tuple(scores.shape[-2:]) != size:
                scores = nn.functional.interpolate(scores, size=size, mode="bilinear")
            results.append({"sem_seg": scores[0], "panoptic_seg": f"of {tuple(size)}"})
        return results

    def _scores(self, item: dict) -> torch.Tensor:
        image = (item["image"].float()[None] - 127) / 64
        return self.head(self.norm(self.conv(image)).relu())


def tiny_cfg(*options) -> CfgNode:
    """SparseRefine on TinyBase, three classes, a UNet of 4 and 8 channels; then `options`."""
    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE", "SparseRefine",
            "MODEL.DEVICE", "cpu",
            "MODEL.WEIGHTS", "",
            "MODEL.PIXEL_MEAN", [127.0, 127.0, 127.0],
            "MODEL.PIXEL_STD", [64.0, 64.0, 64.0],
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(TINY_CLASSES),
            "MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "TinyBase",
            "MODEL.SPARSE_REFINE.EXTRACTOR.PRESET", "custom",
            "MODEL.SPARSE_REFINE.EXTRACTOR.CHANNELS", [4, 8],
            "MODEL.SPARSE_REFINE.EXTRACTOR.BACKEND", "torch",
            "MODEL.SPARSE_REFINE.ENSEMBLER.HIDDEN", 8,
            "INPUT.FORMAT", "RGB",
            "INPUT.CROP.ENABLED", True,
            "INPUT.CROP.TYPE", "absolute",
            "INPUT.CROP.SIZE", [24, 32],
            "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR",
            "SOLVER.BASE_LR", 0.01,
            "SOLVER.WARMUP_ITERS", 0,
            "SOLVER.IMS_PER_BATCH", 2,
            "SOLVER.MAX_ITER", 6,
            "SOLVER.CHECKPOINT_PERIOD", 2,
            "TEST.EVAL_PERIOD", 0,
            "DATALOADER.NUM_WORKERS", 0,
            "SEED", 3,
        ]
    )  # fmt: skip
    cfg.merge_from_list(list(options))
    return cfg


def tiny_images(count: int = 5, size: tuple[int, int] = (40, 56)):
    """(image, labels) pairs: three classes told apart by their colour, in blobs and thin lines."""
    pairs = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        coarse = random.integers(0, 2, (size[0] // 8 + 1, size[1] // 8 + 1)).astype(np.uint8)
        labels = coarse.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
        labels[random.integers(0, size[0], 4)] = 2
        labels[:, random.integers(0, size[1], 4)] = 2
        image = TINY_COLORS[labels] + random.normal(0, 12, (*size, 3))
        pairs.append((image.clip(0, 255).astype(np.uint8), labels))
    return pairs


def register_tiny(name: str, folder: Path, count: int = 5, size: tuple[int, int] = (40, 56)):
    """Write `tiny_images` where they are not there yet, and register them under `name`."""
    for kind in ("images", "labels"):
        Path(folder, kind).mkdir(parents=True, exist_ok=True)
    for index, (image, labels) in enumerate(tiny_images(count, size)):
        if not Path(folder, "labels", f"{index}.png").exists():
            Image.fromarray(image).save(Path(folder, "images", f"{index}.png"))
            Image.fromarray(labels).save(Path(folder, "labels", f"{index}.png"))
    register_image_label_folder(
        name, Path(folder, "images"), Path(folder, "labels"), TINY_CLASSES, ignore_label=255
    )
    return name
