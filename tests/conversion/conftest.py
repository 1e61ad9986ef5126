# SPDX-License-Identifier: Apache-2.0
"""MMSegmentation's own models, to hold ours against."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

CITYSCAPES_MEAN, CITYSCAPES_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


class _Operators(types.ModuleType):
    """mmcv's compiled operators, of which mmcv-lite has none and the models here use none."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


@pytest.fixture(scope="session")
def build_mmseg():
    """build(config, **changes) -> MMSegmentation's model, by one of its own config files."""
    for name in ("mmcv", "mmengine", "mmseg"):
        pytest.importorskip(name, reason="MMSegmentation's packages are not installed")
    sys.modules.setdefault("mmcv._ext", _Operators("mmcv._ext"))
    import mmseg.models
    from mmengine.config import Config

    folder = Path(mmseg.__file__).parent / ".mim" / "configs"

    def build(config: str, **changes) -> nn.Module:
        whole = Config.fromfile(folder / config)
        whole.merge_from_dict({f"model.{key}": value for key, value in changes.items()})
        model = whole.model
        model.pretrained = model.data_preprocessor = model.backbone.init_cfg = None
        model.test_cfg = {"mode": "whole"}
        _one_process(model)
        return mmseg.registry.MODELS.build(model)

    return build


def _one_process(node) -> None:
    """SyncBN, which needs several processes, to BN."""
    if isinstance(node, dict):
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            _one_process(value)


@pytest.fixture(scope="session")
def randomise():
    """Give each parameter and statistic of a model a value that shows where it is swapped."""

    def fill(model: nn.Module) -> nn.Module:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                tensor.data.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.data.normal_(0, 0.3)
            elif tensor.is_floating_point() and tensor.dim() <= 1:
                one = name.endswith("weight") or "layer_scale" in name
                tensor.data.normal_(1 if one else 0, 0.2)
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def build_ours(make_cfg):
    """build(*options) -> (cfg, model): a base of 19 classes on Cityscapes' pixels."""

    def build(*options):
        cfg = make_cfg(
            *("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 19),
            *("MODEL.PIXEL_MEAN", CITYSCAPES_MEAN, "MODEL.PIXEL_STD", CITYSCAPES_STD, *options),
        )
        return cfg, build_model(cfg).eval()

    return build


@pytest.fixture(scope="session")
def predict_both():
    """Both models' `sem_seg` (K,H,W) of one random image."""

    def predict(theirs: nn.Module, ours: nn.Module, size: tuple[int, int] = (64, 96)):
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CITYSCAPES_MEAN, CITYSCAPES_STD))
        shapes = ("ori_shape", "img_shape", "pad_shape", "batch_input_shape")
        with torch.no_grad():
            torch.manual_seed(0)  # SegNeXt's head draws its bases
            expected = theirs.encode_decode(
                ((image - mean) / std)[None], [dict.fromkeys(shapes, size)]
            )[0]
            (output,) = ours([{"image": image, "height": size[0], "width": size[1]}])
        return expected, output["sem_seg"]

    return predict
