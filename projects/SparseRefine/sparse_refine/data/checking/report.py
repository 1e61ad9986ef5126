# SPDX-License-Identifier: Apache-2.0
"""What a check found, as tables for people and as one object for JSON."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict

from tabulate import tabulate

from ..image_files import described
from .dataset import DatasetCheck
from .findings import KINDS, Finding
from .pair import CheckedPair

MANY_CLASSES = 40  # with more, classes without a pixel are counted instead of listed


def dataset_table(check: DatasetCheck) -> str:
    """A data set's size and classes, for people."""
    read = [pair for pair in check.pairs if pair.size]
    lines = [f"{_printable(check.listing.name)}: {len(check.pairs)} pairs of image and labels"]
    lines += [
        _printable(f"  files passed over in {folder}: {described(passed_over)}")
        for folder, passed_over in check.listing.passed_over.items()
        if passed_over
    ]
    if read:
        sizes = Counter(pair.size for pair in read).most_common()
        shown = ", ".join(f"{w} x {h} ({n})" for (h, w), n in sizes[:4])
        rest = f" and {len(sizes) - 4} sizes more" if len(sizes) > 4 else ""
        pixels = sorted(h * w / 1e6 for h, w in (pair.size for pair in read))
        turned = sum(pair.orientation != 1 for pair in read)
        lines += [
            f"  sizes (width x height, images): {shown}{rest}",
            f"  megapixels: {pixels[0]:.2f} to {pixels[-1]:.2f}, median "
            f"{statistics.median(pixels):.2f}, {sum(pixels):.1f} in all",
        ]
        lines += [f"  EXIF turns {turned} of the images"] if turned else []
    pixels, images = check.pixels, check.images
    if not pixels:
        return "\n".join(lines)
    classes, ignored = check.num_classes, pixels[check.ignore_label]
    values = set(pixels)
    missing = sorted(set(range(classes or 0)) - values)
    if (classes or 0) <= MANY_CLASSES:
        values.update(missing)
    total = sum(pixels.values()) - ignored
    rows = [
        [
            value,
            check.class_name(value),
            pixels[value],
            None if value == check.ignore_label else 100 * pixels[value] / max(total, 1),
            images[value],
        ]
        for value in sorted(values)
    ]
    headers = ["label", "class", "pixels", "% of labelled", "label maps"]
    lines.append(
        tabulate(
            rows, headers=headers, tablefmt="github", intfmt=("", "", ",", "", ","), floatfmt=".3f"
        )
    )
    if missing:
        shown = "" if classes <= MANY_CLASSES else f" ({', '.join(map(str, missing[:12]))} ...)"
        lines.append(f"{len(missing)} of {classes} classes have no pixel{shown}")
    return "\n".join(lines)


def findings_table(findings: list[Finding], show: int) -> str:
    """Numbers by kind, then the first `show` messages of each."""
    if not findings:
        return "no faults, no warnings"
    by_kind = {kind: [f for f in findings if f.kind == kind] for kind in KINDS}
    rows = [
        [kind, "fault" if KINDS[kind].is_fault else "warning", len(found), KINDS[kind].meaning]
        for kind, found in by_kind.items()
        if found
    ]
    lines = [tabulate(rows, headers=["found", "", "times", "meaning"], tablefmt="github")]
    for kind, found in by_kind.items():
        lines += [f"{kind}: {_printable(finding.message)}" for finding in found[:show]]
        if len(found) > show:
            lines.append(f"{kind}: and {len(found) - show} more (--show, or --json for all)")
    faults = sum(finding.is_fault for finding in findings)
    lines.append(f"{faults} faults, {len(findings) - faults} warnings")
    return "\n".join(lines)


def record(checks: list[DatasetCheck], findings: list[Finding]) -> dict:
    """All of it, for programs."""
    return {
        "faults": sum(finding.is_fault for finding in findings),
        "warnings": sum(not finding.is_fault for finding in findings),
        "findings": [{**asdict(f), "fault": f.is_fault} for f in findings],
        "datasets": [
            {
                "name": check.listing.name,
                "num_classes": check.num_classes,
                "ignore_label": check.ignore_label,
                "classes": [
                    {
                        "label": value,
                        "name": check.class_name(value),
                        "pixels": pixels,
                        "images": check.images[value],
                    }
                    for value, pixels in sorted(check.pixels.items())
                ],
                "passed_over": {f: dict(n) for f, n in check.listing.passed_over.items()},
                "pairs": [_pair(pair) for pair in check.pairs],
            }
            for check in checks
        ],
    }


def _printable(text: str) -> str:
    """File names may hold what a terminal obeys, or bytes that are no text."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _pair(pair: CheckedPair) -> dict:
    height, width = pair.size or (None, None)
    return {
        "image": pair.image,
        "labels": pair.labels,
        "height": height,
        "width": width,
        "megapixels": pair.size and height * width / 1e6,
        "orientation": pair.orientation,
        "label_size": pair.label_size,
        "pixels": pair.counts,
        "findings": [finding.kind for finding in pair.findings],
    }
