# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality of a base's panoptic output, which SparseRefine passes on at full size."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator
from detectron2.utils import comm


class PanopticEvaluator(DatasetEvaluator):
    """Detectron2's COCOPanopticEvaluator for whatever model returns "panoptic_seg".

    Whether a base is panoptic shows in its outputs alone, so this one is added for every panoptic
    data set: without such outputs it counts, needs and reports nothing. It leaves the outputs as
    they are, which Detectron2's changes.

    Args:
        dataset_name: its metadata has `panoptic_json`, `panoptic_root` and both
            `*_dataset_id_to_contiguous_id`, its dicts have "image_id".
        output_dir: for Detectron2's `predictions.json`.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        self._arguments = dataset_name, output_dir
        self._coco: COCOPanopticEvaluator | None = None

    def reset(self) -> None:
        self._coco = None

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """
        Raises:
            ImportError: "panoptic_seg" came, and panopticapi is not installed.
        """
        for item, output in zip(inputs, outputs):
            if "panoptic_seg" not in output:
                continue
            if self._coco is None:
                self._start()
            ids, segments = output["panoptic_seg"]
            copied = None if segments is None else [dict(segment) for segment in segments]
            self._coco.process([item], [{"panoptic_seg": (ids.clone(), copied)}])

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"panoptic_seg": {"PQ", "SQ", "RQ", and of things "_th", of stuff "_st"}}, percent, on
        the main process; None on the others and where no panoptic output came."""
        if not any(comm.all_gather(self._coco is not None)):
            return None
        if self._coco is None:  # the others have, and wait for this process
            self._start()
        return self._coco.evaluate()

    def _start(self) -> None:
        import_panopticapi()
        self._coco = COCOPanopticEvaluator(*self._arguments)
        self._coco.reset()


def import_panopticapi() -> None:
    """
    Raises:
        ImportError: it is not installed; says what to do.
    """
    try:
        import panopticapi.evaluation  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "panoptic quality needs panopticapi: `pip install --no-deps panopticapi-lite`, or its "
            'repository; without it, set the data set\'s evaluator_type to "sem_seg" for mIoU and '
            "Boundary IoU alone"
        ) from error
