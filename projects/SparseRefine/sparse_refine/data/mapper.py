# SPDX-License-Identifier: Apache-2.0
"""From a dataset dict to a model's input, for dense models and for SparseRefine alike.

Training of a dense model gives a crop at the model's own resolution. Training of SparseRefine gives
a full-resolution crop and the WHOLE image at low resolution (the context): the frozen base must see
at training what it sees at inference, its errors on small crops would be other ones.

An image of 8 megapixels is never resized as a whole in training: the crop's box is resampled from
the native pixels straight to the crop's size.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.projects.point_rend import ColorAugSSDTransform

from ..modeling.contract import refines
from ..resampling import downsample, low_size, resize_pixels
from .augmentation import draw_crop, recolor, seeded
from .keys import check_test_size
from .label_checks import check_labels, check_same_size
from .reading import read_image, read_labels


class SegmentationMapper:
    """Callable on a Detectron2 dataset dict.

    Training returns "image" uint8 (3,Hc,Wc) and "sem_seg" int64 (Hc,Wc); where `context_scale` is
    given also "context" float (3,h,w), "context_flip" (the context has NOT been flipped, the crop
    has) and "crop" (top, left, H, W), the crop's place in the augmented image of H x W.
    Inference returns "image" uint8 (3,H,W) at `scale`, and the native "height" and "width".

    Args:
        is_train: augment and return labels.
        num_classes, ignore_label: labels must be 0..K-1 or `ignore_label`.
        image_format: "RGB" or "BGR".
        scale: share of native resolution at which the model sees the image, > 0.
        context_scale: low over full resolution of the context, or None for a dense model.
        plain_context: leave flip and colour off the context (its logits are cached on disk).
        resize_range: factors (low, high), drawn uniformly.
        crop_size: (height, width) in pixels, or None for the whole image. Images smaller than it
            stay as they are.
        single_category_max_area: a crop is drawn anew, up to ten times, while a class covers more.
        flip: horizontally, half of the time.
        color_aug: SSD's photometric distortion.
        cache_images: training images, with their labels, that stay decoded in memory.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        num_classes: int,
        ignore_label: int,
        image_format: str = "RGB",
        scale: float = 1.0,
        context_scale: float | None = None,
        plain_context: bool = False,
        resize_range: tuple[float, float] = (1.0, 1.0),
        crop_size: tuple[int, int] | None = None,
        single_category_max_area: float = 1.0,
        flip: bool = False,
        color_aug: bool = False,
        cache_images: int = 0,
    ):
        self.is_train = is_train
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.image_format = image_format
        self.scale = scale
        self.context_scale = context_scale
        self.plain_context = plain_context
        self.resize_range = tuple(resize_range)
        self.crop_size = crop_size
        self.single_category_max_area = single_category_max_area
        self.flip = flip
        self.color_aug = ColorAugSSDTransform(image_format) if color_aug else None
        self.cache_images = cache_images
        # of each data worker's own, which a fork copies
        self._decoded: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._contexts: dict[str, torch.Tensor] = {}

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        refine = refines(cfg)
        node = cfg.MODEL.SPARSE_REFINE
        if not is_train:
            check_test_size(cfg)
        limits = list(cfg.INPUT.RESIZE_RANGE)
        if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
            raise ValueError(f"INPUT.RESIZE_RANGE is {limits}: [low, high], 0 < low <= high")
        low, high = limits
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}: 'RGB' or 'BGR'")
        if not cfg.INPUT.SCALE > 0:
            raise ValueError(f"INPUT.SCALE is {cfg.INPUT.SCALE}: it must be above 0")
        if cfg.INPUT.RANDOM_FLIP not in ("horizontal", "none"):
            raise ValueError(
                f"INPUT.RANDOM_FLIP is {cfg.INPUT.RANDOM_FLIP!r}: 'horizontal' or 'none'"
            )
        cached = refine and bool(node.COARSE_CACHE)
        if cached and (low, high) != (1.0, 1.0):
            raise ValueError(
                "MODEL.SPARSE_REFINE.COARSE_CACHE keeps logits of images without augmentation: "
                f"set INPUT.RESIZE_RANGE to [1.0, 1.0] (it is [{low}, {high}])"
            )
        crop = cfg.INPUT.CROP
        absolute = crop.TYPE == "absolute" and len(crop.SIZE) == 2 and min(crop.SIZE) >= 1
        if crop.ENABLED and not absolute:
            raise ValueError(
                f"INPUT.CROP.TYPE is {crop.TYPE!r} and SIZE {list(crop.SIZE)}: this project crops "
                "with TYPE 'absolute' and a SIZE [height, width] in pixels"
            )
        if not 0 < crop.SINGLE_CATEGORY_MAX_AREA <= 1:
            raise ValueError(
                "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is "
                f"{crop.SINGLE_CATEGORY_MAX_AREA}: a share above 0, up to 1"
            )
        return {
            "is_train": is_train,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "image_format": cfg.INPUT.FORMAT,
            "scale": 1.0 if refine else cfg.INPUT.SCALE,
            "context_scale": node.BASE.SCALE if refine else None,
            "plain_context": cached,
            "resize_range": (low, high),
            "crop_size": tuple(int(side) for side in crop.SIZE) if crop.ENABLED else None,
            "single_category_max_area": crop.SINGLE_CATEGORY_MAX_AREA,
            "flip": cfg.INPUT.RANDOM_FLIP == "horizontal",
            "color_aug": cfg.INPUT.COLOR_AUG_SSD,
            "cache_images": cfg.INPUT.CACHE_IMAGES,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        dataset_dict = copy.copy(dataset_dict)
        if self.is_train:
            with seeded(dataset_dict.pop("seed", None)):
                return self._training_input(dataset_dict)
        image = read_image(dataset_dict["file_name"], format=self.image_format)
        dataset_dict.update(inference_input(image, self.scale))
        return dataset_dict

    def _read_pair(self, image_file: str, label_file: str) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels, checked. The first `cache_images` of them are read only once."""
        if image_file not in self._decoded:
            image = read_image(image_file, format=self.image_format)
            labels = read_labels(label_file)
            check_same_size(image, labels, image_file, label_file)
            check_labels(labels, self.num_classes, self.ignore_label, label_file)
            if len(self._decoded) >= self.cache_images:
                return image, labels
            self._decoded[image_file] = image, labels
        return self._decoded[image_file]

    def _training_input(self, dataset_dict: dict) -> dict:
        image, labels = self._read_pair(
            dataset_dict["file_name"], dataset_dict["sem_seg_file_name"]
        )
        # the augmented image is never made as a whole: `full` is the size that it would have
        factor = self.scale * np.random.uniform(*self.resize_range)
        full = low_size(image.shape[:2], factor)
        window, target = draw_crop(
            labels, full, self.crop_size or full, self.ignore_label, self.single_category_max_area
        )
        top, left, height, width = window
        if full == image.shape[:2]:  # as it is, without a copy of all of it
            crop = image[top : top + height, left : left + width]  # (Hc,Wc,3)
        else:
            zoom_y, zoom_x = image.shape[0] / full[0], image.shape[1] / full[1]
            box = (left * zoom_x, top * zoom_y, (left + width) * zoom_x, (top + height) * zoom_y)
            crop = resize_pixels(image, (height, width), box)
        context = self._context(dataset_dict["file_name"], image, full)

        flip = self.flip and np.random.rand() < 0.5
        if flip:
            crop, target = crop[:, ::-1], target[:, ::-1]
            left = full[1] - left - width  # the crop's place in the flipped image
        if self.color_aug is not None:
            if context is None or self.plain_context:
                (crop,) = recolor(self.color_aug, [crop])
            else:  # the transform wants 8 bits
                small = context.round().byte().permute(1, 2, 0).numpy()  # (h,w,3)
                crop, small = recolor(self.color_aug, [crop, small])
                context = _to_tensor(small).float()
        if context is not None:
            if flip and not self.plain_context:
                context = context.flip(-1)
            dataset_dict["context"] = context
            dataset_dict["context_flip"] = flip and self.plain_context
            dataset_dict["crop"] = (top, left, *full)
        dataset_dict["image"] = _to_tensor(crop)
        dataset_dict["sem_seg"] = torch.from_numpy(target.astype(np.int64))
        dataset_dict["height"], dataset_dict["width"] = height, width
        return dataset_dict

    def _context(self, file: str, image: np.ndarray, full: tuple[int, int]) -> torch.Tensor | None:
        """Float (3,h,w): the whole image at low resolution, as SparseRefine makes it. Where it is
        always the same, it is made once of each image that is kept: at 8 megapixels it is most of a
        sample's work."""
        if self.context_scale is None:
            return None
        if file in self._contexts:
            return self._contexts[file]
        context = downsample(_to_tensor(image), low_size(full, self.context_scale))
        if self.plain_context and file in self._decoded:
            self._contexts[file] = context
        return context


def inference_input(image: np.ndarray, scale: float) -> dict:
    """What a model gets at inference for an image (H,W,3) uint8: "image" uint8 (3,h,w) at `scale`,
    and the native "height" and "width"."""
    resized = resize_pixels(image, low_size(image.shape[:2], scale))
    return {"image": _to_tensor(resized), "height": image.shape[0], "width": image.shape[1]}


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    # copy(): ascontiguousarray leaves the negative stride of a flipped image one pixel wide
    return torch.from_numpy(image.transpose(2, 0, 1).copy())
