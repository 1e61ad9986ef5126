# SPDX-License-Identifier: Apache-2.0
"""The report's folder: index.html, report.json, plots/, pages/ and thumbnails/."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jinja2
import numpy as np

from sparse_refine.storage.files import write_text
from sparse_refine.visualization.pictures import write_picture

from . import pictures, plots
from .measure import ImageResult, Measured

MARKER = "report.json"  # what a folder of an earlier run is known by
RANKS = {
    "miou": "mIoU of the image, refined less coarse",
    "pixels": "pixels improved less pixels degraded",
}


@dataclass
class About:
    """What the report is of, for its head."""

    model: str
    dataset: str
    selector: str
    images: int
    of_images: int
    boundary_distance: int
    class_names: list[str]


@dataclass
class Card:
    """An image that is shown: its numbers; its page and small pictures, relative to the report."""

    result: ImageResult
    name: str
    page: str
    thumbnails: list[tuple[str, str]] = field(default_factory=list)  # caption, file


@dataclass
class Chosen:
    """Where refinement helped and where it hurt most, best and worst first. `hurt_any`: False where
    it hurt nowhere, and `hurt` holds the images that gained least."""

    helped: list[ImageResult]
    hurt: list[ImageResult]
    hurt_any: bool


def choose(images: list[ImageResult], top: int, rank_by: str) -> Chosen:
    ranked = sorted(
        (image for image in images if not math.isnan(image.rank(rank_by))),
        key=lambda image: -image.rank(rank_by),
    )
    helped = [image for image in ranked if image.rank(rank_by) > 0][:top]
    hurt = [image for image in reversed(ranked) if image.rank(rank_by) < 0][:top]
    if hurt:
        return Chosen(helped, hurt, True)
    least = [image for image in reversed(ranked) if image not in helped][:top]
    return Chosen(helped, least, False)


def write_report(
    folder: Path,
    about: About,
    measured: Measured,
    chosen: Chosen,
    rank_by: str,
    show: Callable[[ImageResult], pictures.View],
) -> None:
    """Fill an empty folder.

    Args:
        show: predicts an image again, for its pictures.
    """
    for part in ("plots", "pages", "thumbnails"):
        (folder / part).mkdir()
    left_out = plots.class_gains(
        folder / "plots" / "classes.png", measured.results, about.class_names
    )
    plots.entropy_against_error(folder / "plots" / "entropy.png", measured)
    plots.budgets(folder / "plots" / "budgets.png", measured)
    helped = [draw_card(folder, image, show(image), "improved") for image in chosen.helped]
    hurt = [draw_card(folder, image, show(image), "degraded") for image in chosen.hurt]
    html = render(
        about=about,
        r=measured.results,
        measured=measured,
        verdict=verdict(measured),
        helped=helped,
        hurt=hurt,
        hurt_any=chosen.hurt_any,
        rank=RANKS[rank_by],
        images=sorted(measured.images, key=lambda image: -_or_least(image.rank(rank_by))),
        pages={card.result.position: card.page for card in (*helped, *hurt)},
        left_out=left_out,
        colors={name: "rgb" + str(color) for name, color in pictures.VERDICTS},
        max_entropy=math.log(len(about.class_names)),
    )
    write_text(folder / "index.html", html)
    write_text(folder / MARKER, json.dumps(numbers(about, measured, rank_by), indent=1) + "\n")


def render(**values) -> str:
    """The page; whatever is put into it is escaped, and a value that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = display_name
    return environment.get_template("report.html").render(values)


def draw_card(folder: Path, image: ImageResult, shown: pictures.View, kind: str) -> Card:
    """The image's page and small pictures. `kind`: "improved" or "degraded", what they show."""
    stem = f"{image.position:05d}_{file_stem(image.file_name)}"
    card = Card(image, display_name(image.file_name), f"pages/{stem}.png")
    write_picture(folder / card.page, pictures.page(shown))
    for index, (caption, picture) in enumerate(pictures.thumbnails(shown, kind).items()):
        path = f"thumbnails/{stem}_{index}.jpg"
        write_picture(folder / path, picture, quality=88)
        card.thumbnails.append((caption, path))
    return card


def verdict(measured: Measured) -> dict[str, float]:
    """What the text says of the data set as a whole."""
    images = [image for image in measured.images if image.pixels]
    entropy = measured.entropy
    # the oracle of the smallest budget that is not below what was selected
    own = measured.results["selected_fraction"]
    limit = next((r for r in measured.limits if r["fraction"] >= own - 1e-3), measured.limits[-1])
    return {
        "better": sum(image.gain > 0 for image in images),
        "worse": sum(image.gain < 0 for image in images),
        "improved": sum(image.improved for image in images),
        "degraded": sum(image.degraded for image in images),
        "pixels": max(1, sum(image.pixels for image in images)),
        "limit": limit["oracle_mIoU"],
        "limit_fraction": limit["fraction"],
        "sure_pixels": entropy.pixels[0] / max(1, entropy.pixels.sum()),
        "sure_errors": entropy.coarse_errors[0] / max(1, entropy.coarse_errors.sum()),
    }


def numbers(about: About, measured: Measured, rank_by: str) -> dict:
    """All numbers of the report, strict JSON: null stands for NaN."""
    entropy = measured.entropy
    content = {
        "made_by": "tools/visualize.py",
        **asdict(about),
        "rank_by": rank_by,
        "results": dict(measured.results),
        "errors_found": measured.errors_found,
        "budgets": measured.sweep,
        "limits": measured.limits,
        "entropy": {
            "edges": entropy.edges.tolist(),
            "pixels": entropy.pixels.tolist(),
            "selected": entropy.selected.tolist(),
            "coarse_errors": entropy.coarse_errors.tolist(),
            "fused_errors": entropy.fused_errors.tolist(),
        },
        "images": [{**asdict(image), "gain": image.gain} for image in measured.images],
    }
    return _without_nan(content)


def file_stem(file_name: str) -> str:
    """Of a file's name what is safe in any folder and in a link."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(file_name).stem)[:60]


def display_name(file_name: str) -> str:
    """The last part of a path as text, whatever its bytes are."""
    return os.fsencode(os.path.basename(file_name)).decode("utf-8", "replace")


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, (float, np.floating)) and math.isnan(value) else value
