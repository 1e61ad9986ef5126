# SPDX-License-Identifier: Apache-2.0
"""All pairs of a data set, read by several processes, and what they add up to."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import cv2

from .findings import Finding
from .listing import Listing
from .pair import CheckedPair, check_pair

FEW_PAIRS = 16  # to start processes takes longer than to read these
CHUNK = 256  # pairs that are handed to processes at once


@dataclass
class DatasetCheck:
    """`pairs` in the order of the listing; `findings` of the listing, the pairs and the whole."""

    listing: Listing
    num_classes: int | None
    ignore_label: int | None
    pairs: list[CheckedPair]
    findings: list[Finding]

    @property
    def pixels(self) -> Counter[int]:
        """Pixels of each label value, over all label maps that could be read."""
        total = Counter()
        for pair in self.pairs:
            total.update(pair.counts)
        return total

    @property
    def images(self) -> Counter[int]:
        """Label maps in which each value occurs."""
        return Counter(value for pair in self.pairs for value in pair.counts)

    def class_name(self, value: int) -> str:
        """The name of a label value; "" where it has none."""
        names = self.listing.class_names or ()
        if value == self.ignore_label:
            return "(ignored)"
        if self.num_classes is not None and not 0 <= value < self.num_classes:
            return "(out of range)"
        return names[value] if 0 <= value < len(names) else ""


def check_dataset(
    listing: Listing,
    num_classes: int | None,
    ignore_label: int | None,
    workers: int = 1,
    progress=lambda results, total: results,
) -> DatasetCheck:
    """Read every pair of the listing.

    Args:
        num_classes: K; None does not look at the labels' range.
        workers: processes; with 1, or a few pairs, this one reads.
        progress: (iterator of results, their number) -> iterator, for a bar.
    """
    options = (num_classes, ignore_label)
    results = _in_processes if workers > 1 and len(listing.pairs) > FEW_PAIRS else _here
    done = dict(progress(results(listing.pairs, options, workers), len(listing.pairs)))
    pairs = [done[index] for index in range(len(listing.pairs))]
    findings = [*listing.findings, *(finding for pair in pairs for finding in pair.findings)]
    check = DatasetCheck(listing, num_classes, ignore_label, pairs, findings)
    findings.extend(_of_the_whole(check))
    return check


def shared_images(first: DatasetCheck, second: DatasetCheck) -> list[Finding]:
    """Images of the first set whose pixels are an image of the second, whatever their names."""
    by_digest = {pair.digest: pair.image for pair in second.pairs if pair.digest}
    names = first.listing.name, second.listing.name
    return [
        Finding(
            "in two sets",
            f"{pair.image} of {names[0]} is {by_digest[pair.digest]} of {names[1]}, pixel for "
            "pixel: accuracies on it say nothing; take it out of one of them",
            (pair.image, by_digest[pair.digest]),
        )
        for pair in first.pairs
        if pair.digest in by_digest
    ]


def _here(pairs, options, workers) -> Iterator[tuple[int, CheckedPair]]:
    for index, pair in enumerate(pairs):
        yield index, check_pair(*pair, *options)


def _in_processes(pairs, options, workers) -> Iterator[tuple[int, CheckedPair]]:
    """As they are done. A file that kills its process (a decoder's crash, memory that runs out) is
    named: what was under way is read again, each pair by a process of its own."""
    for start in range(0, len(pairs), CHUNK):
        left = dict(enumerate(pairs[start : start + CHUNK], start))
        try:
            with _pool(workers) as pool:
                # All processes before any file: Python 3.11 stumbles where one dies meanwhile.
                wait([pool.submit(int) for _ in range(workers)])
                futures = {pool.submit(check_pair, *pair, *options): i for i, pair in left.items()}
                for future in as_completed(futures):
                    result = future.result()
                    del left[futures[future]]
                    yield futures[future], result
        except BrokenProcessPool:
            for index, pair in left.items():
                yield index, _alone(pair, options)


def _alone(pair: tuple[str, str], options) -> CheckedPair:
    with _pool(1) as pool:
        try:
            return pool.submit(check_pair, *pair, *options).result()
        except BrokenProcessPool:
            message = (
                f"{pair[0]} or {pair[1]}: reading them ended the process; a file that makes a "
                "decoder crash, or larger than memory"
            )
            return CheckedPair(*pair, findings=[Finding("unreadable", message, pair)])


def _pool(workers: int) -> ProcessPoolExecutor:
    """Processes of a fresh one: OpenCV's threads do not survive a fork, and a copy of a process
    that has used them waits for them forever. The imports are made once, where the system can."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([check_pair.__module__])
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
    )


def _of_the_whole(check: DatasetCheck) -> Iterable[Finding]:
    seen: dict[str, str] = {}
    for pair in check.pairs:
        twin = seen.setdefault(pair.digest, pair.image)
        if pair.digest and twin != pair.image:
            message = f"{pair.image} is {twin}, pixel for pixel"
            yield Finding("same image", message, (twin, pair.image))
    values = set(check.pixels) - {check.ignore_label}
    name, classes = check.listing.name, check.num_classes
    if classes and max(values, default=0) == classes:
        yield Finding(
            "labels count from one",
            f"{name}: labels reach {classes}, and {classes} classes are 0..{classes - 1}. If the "
            "files count from 1, with 0 for no class, set DATASETS.REDUCE_ZERO_LABEL",
        )
    if len(values) == 1 and (classes or 2) > 1:
        (value,) = values
        ignored = check.ignore_label
        what, hint = f"{value}", ""
        if ignored in check.pixels:
            what = f"{value} or {ignored}, and {ignored} is ignored"
            hint = (
                ". If it was to be a class, as in masks of 0 and 255, change the files, or the "
                "ignore label"
            )
        message = f"{name}: every pixel is {what}: there is nothing to learn{hint}"
        yield Finding("one class", message)
