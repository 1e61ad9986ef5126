# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a base model or of SparseRefine on a data set, as a Detectron2 evaluator.

Each image leaves a compact record of counts (records.py); the records are gathered, summed over the
images and divided once (results.py, metrics.py). They are kept by image so that one which two
processes saw counts once, and so that an evaluation that was stopped can go on.
"""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..data.registration import ignore_label_of
from .image_counts import count_image
from .records import RecordWriter, read_records, remove_records
from .results import results_table, total_results, write_results
from .timing import ForwardTimer

logger = logging.getLogger(__name__)


class SparseRefineEvaluator(DatasetEvaluator):
    """mIoU, Boundary IoU and pixel accuracy of every prediction that a model offers.

    Takes plain models ("sem_seg", (K,H,W) scores) and SparseRefine ("refinement", with "labels" or
    "sem_seg"). The latter is measured three times, with the coarse, the refined or the fused
    prediction at the selected pixels, and once more each on the selected pixels alone.

    Args:
        dataset_name: registered; its metadata has `stuff_classes`, its dicts "file_name" and
            "sem_seg_file_name".
        output_dir: where the records and `results.json` go; nothing is written without it.
        boundary_distance: half width in pixels of the band that Boundary IoU looks at.
        ignore_label: no class; None takes the metadata's, 255 where it has none.
        distributed: gather from all processes, which must then all call `reset` and `evaluate`.
            If False, this process has the whole data set and output_dir for itself.
        resume: keep the records in output_dir, which must have the same tag; see `remaining`.
            If False, `reset` removes them.
        tag: says what the records belong to, such as a digest of weights and config.
        progress: show a bar on the main process.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        boundary_distance: int = 5,
        ignore_label: int | None = None,
        distributed: bool = True,
        resume: bool = False,
        tag: str = "",
        progress: bool = False,
    ):
        if boundary_distance < 1:
            raise ValueError(f"boundary_distance is {boundary_distance} pixels, expected >= 1")
        if resume and not output_dir:
            raise ValueError("resume=True needs the output_dir that holds the records")
        metadata = MetadataCatalog.get(dataset_name)
        self._class_names = list(metadata.stuff_classes)
        self.num_classes = len(self._class_names)
        self.ignore_label = ignore_label_of(dataset_name) if ignore_label is None else ignore_label
        records = DatasetCatalog.get(dataset_name)
        if not all("sem_seg_file_name" in record for record in records):
            raise ValueError(
                f"data set {dataset_name!r} has no semantic labels: its dicts lack "
                '"sem_seg_file_name". Of COCO\'s panoptic sets, those called `*_separated` have it'
            )
        self._truth_files = {_name(r): r["sem_seg_file_name"] for r in records}
        self._output_dir = Path(output_dir) if output_dir else None
        self._boundary_distance = boundary_distance
        self._distributed = distributed
        self._rank = comm.get_rank() if distributed else 0
        self._resume = resume
        self._progress = progress
        self._header = {  # what a record's numbers depend on
            "tag": tag,
            "dataset": dataset_name,
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
            "boundary_distance": boundary_distance,
        }
        self._records: dict[str, dict[str, Any]] = {}  # this run's, by file name
        self._resumed: dict[str, dict[str, Any]] = {}  # an earlier run's
        self._writer: RecordWriter | None = None
        self._timer: ForwardTimer | None = None
        self._calls_seen = 0
        self._bar = None

    def belongs_to(self, tag: str, resume: bool) -> None:
        """Set what the constructor calls `tag` and `resume`, before `remaining` and `reset`."""
        if resume and self._output_dir is None:
            raise ValueError("resume=True needs the output_dir that holds the records")
        self._header["tag"] = tag
        self._resume = resume

    def watch(self, model: nn.Module) -> ForwardTimer:
        """Measure the model's forward calls, from now or from `reset` until `evaluate`."""
        if self._timer is not None:
            self._timer.remove()
        self._timer = ForwardTimer(model)
        self._timer.install()
        self._calls_seen = 0
        return self._timer

    def remaining(self, dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the data set's dicts that the records to be resumed do not hold; else all.

        Call it in every process before any of them evaluates.

        Raises:
            ValueError: the records belong to another tag, data set or boundary distance.
        """
        done = read_records(self._output_dir, self._header) if self._resume else {}
        return [record for record in dataset_dicts if _name(record) not in done]

    def reset(self) -> None:
        self._close()
        self._records, self._resumed = {}, {}
        self._synchronize()  # no process reads or removes records that another one still writes
        if self._resume:
            self._resumed = read_records(self._output_dir, self._header)
        elif self._output_dir and self._rank == 0:
            remove_records(self._output_dir)
        self._synchronize()
        if self._timer is not None:
            self._timer.install()
            self._calls_seen = len(self._timer.seconds)
        if self._progress and self._rank == 0:
            from tqdm import tqdm

            images = len(self._truth_files) - len(self._resumed)
            processes = comm.get_world_size() if self._distributed else 1
            self._bar = tqdm(total=math.ceil(images / processes), unit="image")

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count one batch.

        Raises:
            ValueError: a prediction's size is not its truth's, or a label is out of range; names
                the file and both sizes, or the value.
        """
        seconds = self._seconds_an_image(len(inputs))
        for image, output in zip(inputs, outputs):
            file_name = _name(image)
            if file_name not in self._resumed and file_name not in self._records:
                counts = count_image(
                    file_name,
                    self._truth_files[file_name],
                    output,
                    self.num_classes,
                    self.ignore_label,
                    self._boundary_distance,
                )
                record = {"file_name": file_name, **counts}
                if seconds is not None:
                    record["seconds"] = seconds
                self._records[file_name] = record
                if self._output_dir and self._writer is None:
                    self._writer = RecordWriter(self._output_dir, self._rank, self._header)
                if self._writer is not None:
                    self._writer.append(record)
            if self._bar is not None:
                self._bar.update()

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]] | None:
        """The data set's results on the main process, None on the others.

        `{"sparse_refine": {...}}`, accuracies in percent, NaN where there was no pixel to count:

            mIoU, pACC, BoundaryIoU, IoU-NAME, BoundaryIoU-NAME
                          of the model's answer: fused, or a plain model's only prediction
            coarse/mIoU ...  refined/mIoU ...   the same of the other two
            selected/NAME/mIoU, selected/NAME/pACC  of coarse, refined, fused: selected pixels only
            selected_fraction   0..1, selected pixels over all pixels, as the model saw the images
            megapixels          an image, mean
            seconds, seconds_median   an image; under `watch` only. A batch's seconds are shared
                                equally by its images. The first calls' warm-up is in.
        """
        self._close()
        records = [self._records]
        if self._distributed:
            self._synchronize()
            records = comm.gather(self._records, dst=0)
            if self._rank > 0:
                return None
        by_name = dict(self._resumed)
        for of_one_process in records:
            by_name.update(of_one_process)
        counted = [by_name[name] for name in self._truth_files if name in by_name]
        dataset_name, images = self._header["dataset"], len(self._truth_files)
        if len(counted) < images:
            logger.warning(f"{dataset_name}: {len(counted)} of {images} images were evaluated")
        results = total_results(counted, self._class_names)
        logger.info(
            f"{dataset_name}, {len(counted)} images, boundary within {self._boundary_distance} "
            f"pixels:\n{results_table(results, self._class_names)}"
        )
        if self._output_dir:
            about = {**self._header, "images": len(counted)}
            write_results(self._output_dir / "results.json", about, results)
        return OrderedDict(sparse_refine=results)

    def _seconds_an_image(self, images: int) -> float | None:
        """The last forward call's seconds over its images; None where no call was seen since."""
        if self._timer is None or len(self._timer.seconds) == self._calls_seen:
            return None
        self._calls_seen = len(self._timer.seconds)
        return self._timer.seconds[-1] / max(images, 1)

    def _synchronize(self) -> None:
        if self._distributed:
            comm.synchronize()

    def _close(self) -> None:
        """End what a round of evaluation holds open: the hooks, the records' file, the bar."""
        if self._timer is not None:
            self._timer.remove()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _name(record: dict[str, Any]) -> str:
    """Of an image, as the records in JSON have it: Detectron2's dicts may hold a Path."""
    return os.fspath(record["file_name"])
