# SPDX-License-Identifier: Apache-2.0
"""Where examples run: a folder that looks like a clone, with a reader's own files beside it.

field/images, field/labels    six small photographs and their labels: soil, weed, crop
field/train.txt, test.txt     four of them, and the other two
photo.jpg, photos/            what a reader wants segmented
my/                           for the files that the pages write
datasets/rgbweed              stands for $DETECTRON2_DATASETS/rgbweed: two and two pictures
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from .pages import ROOT
from .references import repository_files

SIZE = (192, 256)  # of the reader's pictures, (height, width)
TRAIN, TEST = ("a", "b", "c", "d"), ("e", "f")


def make_workspace(folder: Path, copy: bool) -> Path:
    """Fill an empty folder.

    Args:
        copy: copy the repository's files, so that commands may write anywhere. Else link to them,
            which is enough for examples in Python and yaml.
    """
    if copy:
        for name in repository_files():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    else:
        for name in sorted({Path(name).parts[0] for name in repository_files()}):
            (folder / name).symlink_to(ROOT / name)
    (folder / "my").mkdir()
    _make_pictures(folder)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Variables for commands: this Python first on the path, the folder's package, no network."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(folder / "projects" / "SparseRefine"),
        "DETECTRON2_DATASETS": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }


def _make_pictures(folder: Path) -> None:
    from PIL import Image

    from sparse_refine.data.synthetic import generate_field

    def draw(seed: int, image: Path, labels: Path | None = None) -> None:
        pixels, classes = generate_field(*SIZE, seed)
        for path, values in ((image, pixels), (labels, classes)):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)

    for seed, name in enumerate(TRAIN + TEST):
        draw(seed, folder / f"field/images/{name}.jpg", folder / f"field/labels/{name}.png")
    (folder / "field/train.txt").write_text("\n".join(TRAIN) + "\n")
    (folder / "field/test.txt").write_text("\n".join(TEST) + "\n")
    for name in ("photo.jpg", "photos/1.jpg", "photos/2.jpg"):
        draw(10 + len(name), folder / name)
    _make_video(folder / "clip.mp4", folder / "photo.jpg")
    rgbweed = folder / "datasets" / "rgbweed"
    for seed, name in enumerate(("0", "1", "2", "3"), start=20):
        draw(seed, rgbweed / f"images/{name}.jpg", rgbweed / f"labels/{name}.png")
    (rgbweed / "train.txt").write_text("0\n1\n")
    (rgbweed / "test.txt").write_text("2\n3\n")


def _make_video(path: Path, picture: Path) -> None:
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 5, SIZE[::-1])
    for _ in range(3):
        writer.write(cv2.imread(str(picture)))
    writer.release()
