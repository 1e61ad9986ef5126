# SPDX-License-Identifier: Apache-2.0
"""The pairs of files that a data set is made of.

`DatasetCatalog.get` raises at the first file that is missing or ambiguous; for folders all of them
are listed here, and the other pairs go on to be read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..folders import dataset_files, split_entries
from ..image_files import image_extensions, label_extensions
from ..reduce_zero_label import PREFIX as REDUCE_ZERO_LABEL
from ..registration import ignore_label_of
from .findings import Finding


@dataclass
class Listing:
    """A data set before its files are read.

    `pairs`: (image file, label file). `class_names`: None where they are unknown. `passed_over`: by
    folder, the numbers of files by extension that are no images.
    """

    name: str
    pairs: list[tuple[str, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    passed_over: dict[str, Counter[str]] = field(default_factory=dict)
    class_names: list[str] | None = None
    ignore_label: int | None = 255


def list_registered(name: str) -> Listing:
    """A data set of Detectron2's catalogs.

    Raises:
        KeyError: no such name; says which there are.
    """
    if name not in DatasetCatalog:
        raise KeyError(f"{name!r} is not registered. Known: {', '.join(DatasetCatalog.list())}")
    known = MetadataCatalog.get(name).as_dict()
    folders = [Path(known.get(key) or "") for key in ("image_root", "sem_seg_root")]
    if "split_file" in known and all(folder.is_dir() for folder in folders):
        prefix = REDUCE_ZERO_LABEL if known["reduce_zero_label"] else ""
        listing = list_folder(name, *folders, known["split_file"], prefix)
    else:
        listing = Listing(name)
        try:
            dicts = DatasetCatalog.get(name)
        except Exception as error:  # of any loader, which says why in whatever kind it likes
            message = f"{type(error).__name__}: {error}"
            listing.findings.append(Finding("listing", f"{name} cannot be listed: {message}"))
            dicts = []
        for record in dicts:
            if "sem_seg_file_name" in record:
                listing.pairs.append((record["file_name"], record["sem_seg_file_name"]))
            else:
                message = f"{record['file_name']}: the data set names no label map for it"
                listing.findings.append(Finding("missing", message, (record["file_name"],)))
    listing.class_names = known.get("stuff_classes")
    listing.ignore_label = ignore_label_of(name)
    return listing


def list_folder(
    name: str,
    image_dir: Path,
    label_dir: Path,
    split_file: Path | None = None,
    label_prefix: str = "",
) -> Listing:
    """Images and label maps of one name up to the extension, as `register_image_label_folder` pairs
    them. JPEG label maps are paired too, where there is no other, so that reading names the fault.

    Args:
        split_file: one image a line; None takes all images.
        label_prefix: put before the names of label files.
    """
    listing = Listing(name)

    def found(kind: str, message: str, *files) -> None:
        listing.findings.append(Finding(kind, message, tuple(map(str, files))))

    folders = {"image": Path(image_dir), "label": Path(label_dir)}
    files = {}
    for kind, folder in folders.items():
        try:
            files[kind] = dataset_files(name, kind, folder, image_extensions())
        except FileNotFoundError as error:
            found("listing", str(error), folder)
    if len(files) < 2:
        return listing
    for kind, folder in folders.items():
        listing.passed_over[str(folder)] = files[kind].passed_over
    images, lossless = files["image"].by_stem(), label_extensions()
    labels = {
        stem: [path for path in paths if path.suffix.lower() in lossless] or paths
        for stem, paths in files["label"].by_stem().items()
    }

    stems = sorted(images) if split_file is None else _stems(listing, Path(split_file), images)
    example = next(iter(labels.values()))[0].name
    for stem in stems:
        for what, paths in (("image", images[stem]), ("label", labels.get(stem, []))):
            if len(paths) > 1:
                listed = " and ".join(map(str, paths))
                found("duplicate name", f"{listed} are {what} files of one name", *paths)
        if stem not in labels:
            message = (
                f"{images[stem][0]} has no labels: looked for {stem}.png or another lossless kind "
                f"in {label_dir}, which holds {example}, say"
            )
            found("missing", message, images[stem][0])
        elif len(images[stem]) == len(labels[stem]) == 1:
            listing.pairs.append((str(images[stem][0]), f"{label_prefix}{labels[stem][0]}"))
    if split_file is None:
        for stem in sorted(labels.keys() - images.keys()):
            path = labels[stem][0]
            found("no image", f"{path} has no image: looked for {stem} in {image_dir}", path)
    return listing


def _stems(listing: Listing, split_file: Path, images: dict[str, list[Path]]) -> list[str]:
    """The stems that a split file lists and that have an image, each once."""
    try:
        entries = list(split_entries(split_file, images))
    except (OSError, ValueError) as error:
        message = f"split file {split_file} cannot be read: {error}"
        listing.findings.append(Finding("listing", message, (str(split_file),)))
        return []
    stems: dict[str, int] = {}  # stem -> line
    for number, entry, stem in entries:
        where = f"{split_file}, line {number}"
        if stem not in images:
            message = f"{where}: there is no image {entry!r}"
            listing.findings.append(Finding("missing", message, (str(split_file),)))
        elif stem in stems:
            message = f"{where}: {stem!r} stands in line {stems[stem]} already"
            listing.findings.append(Finding("duplicate name", message, (str(split_file),)))
        else:
            stems[stem] = number
    if not stems:
        message = f"split file {split_file} lists no image that is there"
        listing.findings.append(Finding("listing", message, (str(split_file),)))
    return list(stems)
