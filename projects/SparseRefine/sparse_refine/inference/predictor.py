# SPDX-License-Identifier: Apache-2.0
"""One image in, one dict of predictions out: the package's counterpart of Detectron2's
`DefaultPredictor`."""

from __future__ import annotations

import numbers
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from ..coarse import to_logits
from ..config import load_config, with_options
from ..data import SegmentationMapper, read_image
from ..data.depth import to_8_bits
from ..data.keys import check_test_size
from ..data.mapper import inference_input
from ..modeling.building import checked_device
from ..modeling.contract import check_declared, refines, score_type_of
from ..resampling import argmax_labels
from ..results import Refinement
from ..selector import BudgetSelector
from ..visualization.pictures import distinct_colors
from . import model_zoo
from .loading import load_model


class SparseRefinePredictor:
    """Segments single images with SparseRefine, or with the dense model of a config.

        predictor = SparseRefinePredictor("rgbweed/sparse_refine")
        output = predictor("field.jpg")
        output["labels"]  # (H,W) class ids
        output["selected"]  # (H,W) where it looked again

    It is no tool for measuring: it takes one image at a time and makes all maps that a person may
    want to look at.

    Args:
        cfg_or_name: a config, the path of a yaml, or a model of the zoo (`model_zoo.names()`).
        weights: a checkpoint. None takes MODEL.WEIGHTS of the config, and where that is "" those
            that the zoo has for the yaml.
        device: "cpu", "cuda", "cuda:1" ...; None takes MODEL.DEVICE, or the CPU where torch sees no
            GPU.
        opts: KEY VALUE pairs of the config: ["MODEL.SPARSE_REFINE.OUTPUT", "logits"].
        trust_code: consent to the code that the yaml or config names, see modeling/trust.py.

    Attributes:
        cfg: the config, frozen. model: the model, in eval mode.
        refines: whether it is a SparseRefine.
        metadata: `stuff_classes`, K names, and `stuff_colors`, K times (R,G,B): those of the data
            set in DATASETS.TEST, else DATASETS.CLASS_NAMES, else generated.

    Raises:
        ValueError: no such name, file or device.
        KeyError, ValueError, FileNotFoundError: what `load_config` and `load_model` raise.
    """

    def __init__(
        self,
        cfg_or_name: CfgNode | str | os.PathLike,
        weights: str | os.PathLike | None = None,
        *,
        device: str | torch.device | None = None,
        opts: Sequence = (),
        trust_code: bool = False,
    ):
        if isinstance(opts, (str, dict)):
            raise TypeError(
                f"opts is a {type(opts).__name__}: a list of pairs is needed, ['KEY', value, ...]"
            )
        self.cfg = _config(cfg_or_name, weights, device, list(opts), trust_code)
        check_test_size(self.cfg)
        self.model = load_model(self.cfg)
        self.metadata = _metadata(self.cfg)
        self.input_format = self.cfg.INPUT.FORMAT
        self.refines = refines(self.cfg)
        self._own_selector = self.model.selector if self.refines else None
        # the mapper's, which checks the keys too: a prediction is what an evaluation sees
        self._scale = SegmentationMapper.from_config(self.cfg, is_train=False)["scale"]

    def set_budget(self, fraction: float | None) -> None:
        """Refine this share 0..1 of an image's pixels, the most uncertain ones; None goes back to
        the config's own selector.

        Raises:
            ValueError: another number, or a model that refines nothing.
            TypeError: no number.
        """
        if not self.refines:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {self.cfg.MODEL.META_ARCHITECTURE!r}, which refines "
                "nothing: only SparseRefine has a budget"
            )
        if fraction is not None and not isinstance(fraction, numbers.Real):
            raise TypeError(f"a budget is a share 0..1 of the pixels, not {fraction!r}")
        self.model.selector = (
            self._own_selector if fraction is None else BudgetSelector(fraction=fraction)
        )

    def __call__(
        self, image: str | os.PathLike | np.ndarray, *, channel_order: str = "RGB"
    ) -> dict[str, Any]:
        """Predict one image.

        Args:
            image: a path, read by `data.read_image` (EXIF orientation applied; grey, palette, alpha
                and 16 bits understood), or an array of uint8 or uint16, (H,W), (H,W,1), (H,W,3) or
                (H,W,4). An alpha channel is dropped.
            channel_order: of an array, "RGB" or "BGR" (as OpenCV reads; then also BGRA).

        Returns:
            Tensors on the model's device. Of any model "labels" (H,W) integer and "sem_seg" (K,H,W)
            float scores; a SparseRefine with OUTPUT "labels" makes no "sem_seg". Of a SparseRefine
            also "coarse" (H,W) integer, the base's labels; "entropy" (h,w), of the base at its own
            resolution, in nats; "selected" (H,W) bool; "refinement", a `Refinement`. Whatever else
            the model returns.

        Raises:
            FileNotFoundError, OSError: no such file, or no image in it.
            TypeError, ValueError: an array of another kind, shape or order.
        """
        if isinstance(image, (str, os.PathLike)):
            pixels = read_image(os.fspath(image), format=self.input_format)
        else:
            pixels = _as_uint8(image, channel_order)
            if channel_order != self.input_format:
                pixels = pixels[..., ::-1]
        with torch.no_grad():
            output = dict(self.model([inference_input(pixels, self._scale)])[0])
            if "labels" not in output and "sem_seg" in output:
                output["labels"] = argmax_labels(output["sem_seg"])
            if self.refines:
                output.update(_maps(output["refinement"]))
        return output

    @torch.no_grad()
    def probabilities(self, output: dict[str, Any]) -> torch.Tensor:
        """(K,H,W) float, 0..1, summing to 1 over the classes, from an output that has "sem_seg".

        Raises:
            ValueError: it has none, because MODEL.SPARSE_REFINE.OUTPUT is "labels".
        """
        if "sem_seg" not in output:
            raise ValueError(
                "there are no scores to make probabilities of: set MODEL.SPARSE_REFINE.OUTPUT to "
                f"'logits' (it is {self.cfg.MODEL.SPARSE_REFINE.OUTPUT!r})"
            )
        kind = "logits" if self.refines else score_type_of(self.model)
        return to_logits(output["sem_seg"], kind).softmax(0)


def _config(cfg_or_name, weights, device, opts: list, trust_code: bool) -> CfgNode:
    if weights is not None:
        opts = ["MODEL.WEIGHTS", os.fspath(weights), *opts]
    if device is not None:
        opts = [*opts, "MODEL.DEVICE", str(checked_device(device, "device"))]
    if isinstance(cfg_or_name, CfgNode):
        check_declared(cfg_or_name)
        cfg = with_options(cfg_or_name, opts, trust_code=trust_code)
        return model_zoo.with_weights_found(cfg)
    name = os.path.expanduser(cfg_or_name)
    if os.path.isfile(name):
        cfg = load_config(name, opts, trust_code=trust_code)
        if not cfg.MODEL.WEIGHTS and model_zoo.find(name):
            cfg = model_zoo.get_config(model_zoo.find(name), opts)
        return model_zoo.with_weights_found(cfg)
    try:
        model_zoo.get_config_file(name)
    except ValueError as error:
        raise ValueError(f"{name!r} is no file, and {error}") from error
    return model_zoo.get_config(name, opts)


def _metadata(cfg: CfgNode) -> Metadata:
    """Names and colours for each of the K classes, whatever the data set knows of them."""
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    name = cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else ""
    known = MetadataCatalog.get(name) if name in MetadataCatalog.list() else Metadata(name=name)
    choices = {
        "stuff_classes": (
            known.get("stuff_classes"),
            cfg.DATASETS.CLASS_NAMES,
            [f"class {index}" for index in range(classes)],
        ),
        "stuff_colors": (known.get("stuff_colors"), distinct_colors(classes)),
    }
    return Metadata(
        name=name,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        **{
            key: [*next(values for values in options if values and len(values) == classes)]
            for key, options in choices.items()
        },
    )


def _as_uint8(image: np.ndarray, channel_order: str) -> np.ndarray:
    """An array as `__call__` takes it -> (H,W,3) uint8, channels in the order they had."""
    if channel_order not in ("RGB", "BGR"):
        raise ValueError(f"channel_order is {channel_order!r}: 'RGB' or 'BGR'")
    if image is None:
        raise TypeError(
            "an image is a path or a numpy array, not NoneType: cv2.imread returns None for a file "
            "that it cannot read; hand over the path"
        )
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"an image is a path or a numpy array, not {type(image).__name__}: np.asarray() makes "
            "one of a PIL image, .permute(1, 2, 0).numpy() of a tensor (3,H,W)"
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(
            f"the image is of {image.dtype}: uint8 (0..255) or uint16 (0..65535) is needed; of "
            "shares 0..1 make (255 * image).round().astype(np.uint8)"
        )
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0:
        raise ValueError(
            f"the image is of shape {image.shape}: (H,W), (H,W,1), (H,W,3) or (H,W,4) is needed, "
            "with at least one pixel"
        )
    pixels = to_8_bits(pixels, "the image", 8 * pixels.itemsize)  # as `read_image` does it
    return pixels[..., :3] if pixels.shape[2] > 1 else pixels.repeat(3, axis=2)


def _maps(refinement: Refinement) -> dict[str, torch.Tensor]:
    return {
        "coarse": refinement.label_map("coarse"),
        "entropy": refinement.entropy,
        "selected": refinement.selected(),
    }
