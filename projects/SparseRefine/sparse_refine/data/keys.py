# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of images and data sets."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_data_config(cfg: CN) -> None:
    """Declare this project's keys under INPUT and DATASETS in `cfg`, in place."""
    # ---- images --------------------------------------------------------------------------------
    # Share of an image's native resolution at which a DENSE model (one that is trained or evaluated
    # by itself, not wrapped) sees it, > 0. SparseRefine itself always gets the native image.
    cfg.INPUT.SCALE = 1.0
    # Training: an image is resized by a factor drawn uniformly from [low, high], both > 0. The
    # sides of the crop that follows are INPUT.CROP.SIZE, in pixels, where INPUT.CROP.ENABLED.
    cfg.INPUT.RESIZE_RANGE = [0.5, 2.0]
    # Training: a crop is drawn anew, up to ten times, while one class covers more of it than this
    # share, 0..1 (the paper's recipe: 0.75; 1.0 turns it off).
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Training: random brightness, contrast, saturation and hue as in SSD.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Training: images, with their labels, that each data worker keeps decoded in memory, >= 0. For
    # data sets of few large images (8 megapixels take 32 MB), where decoding is most of the work.
    cfg.INPUT.CACHE_IMAGES = 0

    # ---- data sets of one's own ----------------------------------------------------------------
    # Folders to register, each [name, image folder, label folder] or [..., split file], paths from
    # where the program runs. Images and label maps share names up to the extension; labels hold
    # 0..K-1 or MODEL.SEM_SEG_HEAD.IGNORE_VALUE. Use the names in DATASETS.TRAIN and TEST.
    cfg.DATASETS.FOLDERS = []
    cfg.DATASETS.CLASS_NAMES = []  # the K class names of those folders, in the order of the ids
    # Those labels hold 0 for "no class" and 1..K for the classes, as ADE20K's do (8-bit files).
    cfg.DATASETS.REDUCE_ZERO_LABEL = False


def check_test_size(cfg: CN) -> None:
    """
    Raises:
        ValueError: INPUT.MIN_SIZE_TEST is not 0. Detectron2's own mapper and DefaultPredictor would
            resize images by it; here they keep their resolution, which is what is refined.
    """
    if cfg.INPUT.MIN_SIZE_TEST != 0:
        raise ValueError(
            f"INPUT.MIN_SIZE_TEST is {cfg.INPUT.MIN_SIZE_TEST}, and images are not resized here: "
            "set it to 0. For a dense model INPUT.SCALE is a share of an image's own size"
        )
