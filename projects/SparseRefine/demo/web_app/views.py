# SPDX-License-Identifier: Apache-2.0
"""A result as the pictures and the pieces of HTML that the page shows. Whatever comes from outside
(names of classes, models and files) is escaped."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np

from sparse_refine.evaluation.stages import STAGES
from sparse_refine.visualization.layout import draw_window, fit_tile
from sparse_refine.visualization.pictures import (
    densest_window,
    entropy_picture,
    overlay,
    selected_picture,
)

from .runner import Result

SIDE = 1600  # longest side in pixels of a picture of the whole image
WINDOW = (300, 400)  # rows, columns of the image in the close-up
ENLARGED = 2

MEANING = {
    "resize": "the image to low resolution",
    "base": "the frozen model on it",
    "select": "entropy, choice of pixels",
    "extract": "the sparse network on those",
    "ensemble": "both answers fused",
    "scatter": "label maps made",
}


@dataclass(frozen=True)
class Pictures:
    """RGB uint8. `whole` and `close`: coarse and refined; `entropy`, `selected` of all of it."""

    whole: tuple[np.ndarray, np.ndarray]
    close: tuple[np.ndarray, np.ndarray]
    entropy: np.ndarray
    selected: np.ndarray


def draw(result: Result, opacity: float) -> Pictures:
    """Class colours lie over the image with `opacity` 0..1; the close-up shows, pixel for pixel,
    the window in which refinement changed most labels, and a frame in `whole` shows where it is."""
    top, left = _window(result)
    window = slice(top, top + WINDOW[0]), slice(left, left + WINDOW[1])
    whole, close = [], []
    for labels in (result.coarse, result.labels):
        picture = overlay(result.image, labels, result.colors, opacity)
        detail = picture[window]
        close.append(detail.repeat(ENLARGED, 0).repeat(ENLARGED, 1))
        small = fit_tile(picture, SIDE, enlarge=False)
        if detail.shape != picture.shape:
            draw_window(small, (top, left), WINDOW, result.labels.shape, (255, 255, 255))
        whole.append(small)
    size = whole[0].shape[:2]
    return Pictures(
        tuple(whole),
        tuple(close),
        entropy_picture(result.entropy, size, len(result.class_names)),
        fit_tile(selected_picture(result.image, result.selected), SIDE, enlarge=False),
    )


def legend(result: Result) -> str:
    """Class, colour, and the share of the image before and after."""
    rows = []
    total = result.labels.size
    count = len(result.class_names)
    before, after = (
        np.bincount(labels.ravel(), minlength=count) for labels in (result.coarse, result.labels)
    )
    for index in np.argsort(-after[:count], kind="stable"):
        if before[index] or after[index]:
            red, green, blue = (int(part) for part in result.colors[index])
            rows.append(
                f'<tr><td><span class="swatch" style="background:rgb({red},{green},{blue})">'
                f"</span>{escape(result.class_names[index])}</td>"
                f"<td>{100 * before[index] / total:.2f} %</td>"
                f"<td>{100 * after[index] / total:.2f} %</td></tr>"
            )
    head = "<tr><th>class</th><th>coarse</th><th>refined</th></tr>"
    return f'<table class="sr-table">{head}{"".join(rows)}</table>'


def figures(result: Result) -> str:
    """Megapixels, how much was refined and changed, and the seconds of each stage."""
    height, width = result.labels.shape
    selected = int(result.selected.sum())
    changed = int((result.coarse != result.labels).sum())
    total = sum(result.seconds.values())
    cards = [
        (f"{result.megapixels:.2f} Mpx", "image", f"{width} x {height}"),
        (f"{selected / 1e6:.2f} Mpx", "refined", f"{100 * selected / result.labels.size:.1f} %"),
        (
            f"{changed / 1e6:.3f} Mpx",
            "changed",
            f"{100 * changed / max(selected, 1):.1f} % of the refined",
        ),
        (f"{total:.2f} s", "forward pass", f"{result.megapixels / total:.1f} Mpx a second"),
    ]
    html = "".join(
        f"<div><b>{value}</b><span>{what}</span><small>{more}</small></div>"
        for value, what, more in cards
    )
    parts = "".join(
        f'<i class="stage-{stage}" style="width:{100 * result.seconds[stage] / total:.2f}%"'
        f' title="{stage}: {result.seconds[stage]:.3f} s"></i>'
        for stage in STAGES
    )
    kept = ("resize", "base") if result.coarse_kept else ()
    rows = "".join(
        f'<tr><td><span class="swatch stage-{stage}"></span>{stage}</td>'
        f"<td>{result.seconds[stage]:.3f} s</td>"
        f"<td>{'kept of an earlier run' if stage in kept else MEANING[stage]}</td></tr>"
        for stage in STAGES
    )
    return (
        f'<div class="sr-cards">{html}</div><div class="sr-bar">{parts}</div>'
        f'<table class="sr-table stages">{rows}</table>'
    )


def remarks(result: Result) -> list[str]:
    """What the person should know about this result."""
    found = [result.note] if result.note else []
    if result.cut:
        found.append(
            "More pixels were asked for than this server refines at once: it took the "
            f"{result.selected.sum() / 1e6:.2f} million most uncertain ones."
        )
    return found


def message(texts: list[str], problem: bool = False) -> str:
    """Lines above the pictures; "" leaves no gap."""
    if not texts:
        return ""
    kind = "sr-problem" if problem else "sr-remark"
    role = ' role="alert"' if problem else ""
    return f'<div class="{kind}"{role}>{"<br>".join(escape(text) for text in texts)}</div>'


def _window(result: Result) -> tuple[int, int]:
    changed = result.coarse != result.labels
    busiest = changed if changed.any() else result.selected
    return densest_window(busiest.astype(np.float32), WINDOW)
