# SPDX-License-Identifier: Apache-2.0
"""The synthetic field (synthetic/) as a dataset whose images are made when first asked for."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..storage.files import write_whole
from . import synthetic
from .folders import PathLike
from .registration import register_dataset

# First seed and number of images; the seeds of two splits never meet.
SYNTHETIC_SPLITS = {"train": (0, 20), "val": (1_000_000, 4)}

SCALES = {"plant_scale": 8, "ground_scale": 2}  # of generate_field

logger = logging.getLogger(__name__)


def register_synthetic_field(
    name: str,
    split: str,
    count: int | None = None,
    height: int = 3072,
    width: int = 4096,
    root: PathLike | None = None,
) -> None:
    """Register `count` images of the synthetic field (synthetic/), made when first asked for.

    They are kept in `root`/VERSION/HEIGHTxWIDTH/`split`: images as JPEG of quality 95 without
    chroma subsampling, a quarter of a PNG's size, labels as PNG. Any number of processes may ask
    at once.

    Args:
        split: "train" or "val", whose seeds are disjoint.
        count: number of images; the split's own (20 and 4) by default.
        root: by default `synthetic_field` in $SPARSE_REFINE_CACHE, or else in `sparse_refine` in
            $XDG_CACHE_HOME or ~/.cache.

    Raises:
        ValueError: a name in use, an unknown split, a count or size below 1.
    """
    if split not in SYNTHETIC_SPLITS:
        raise ValueError(
            f"split of a synthetic field is one of {list(SYNTHETIC_SPLITS)}, got {split!r}"
        )
    count = SYNTHETIC_SPLITS[split][1] if count is None else count
    if min(count, height, width) < 1:
        raise ValueError(
            f"dataset {name!r}: {count} images of {width} x {height} pixels cannot be made"
        )
    root = _cache_folder() / "synthetic_field" if root is None else Path(root)
    folder = root / synthetic.GENERATOR_VERSION / f"{height}x{width}" / split
    register_dataset(
        name,
        functools.partial(
            _load_synthetic, name, folder, SYNTHETIC_SPLITS[split][0], count, height, width
        ),
        class_names=synthetic.CLASS_NAMES,
        ignore_label=255,
        colors=synthetic.CLASS_COLORS,
        image_dir=folder,
        label_dir=folder,
    )


def _cache_folder() -> Path:
    """Where made data is kept: $SPARSE_REFINE_CACHE, or the user's cache folder."""
    folder = os.environ.get("SPARSE_REFINE_CACHE")
    if folder:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sparse_refine"


def _load_synthetic(
    name: str, folder: Path, first_seed: int, count: int, height: int, width: int
) -> list[dict]:
    """The dataset's dicts, after making what images are missing."""
    pairs = {
        seed: (folder / f"{seed:07d}.jpg", folder / f"{seed:07d}.png")
        for seed in range(first_seed, first_seed + count)
    }

    def missing(seed: int) -> bool:
        return not all(path.exists() for path in pairs[seed])

    todo = [seed for seed in pairs if missing(seed)]
    if todo:
        logger.info("Making %d images of %s in %s", len(todo), name, folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Several processes start at different images, so that they share the work; making the same
        # one twice is harmless, since its bytes are the same and a rename replaces whole files.
        start = os.getpid() % len(todo)
        for seed in tqdm(todo[start:] + todo[:start], desc=name, unit="image"):
            if missing(seed):
                image, labels = synthetic.generate_field(height, width, seed, **SCALES)
                image_file, label_file = pairs[seed]
                save = functools.partial(Image.fromarray(image).save, quality=95, subsampling=0)
                write_whole(image_file, save)
                write_whole(label_file, Image.fromarray(labels).save)
    return [
        {"file_name": str(image), "sem_seg_file_name": str(label), "height": height, "width": width}
        for image, label in pairs.values()
    ]
