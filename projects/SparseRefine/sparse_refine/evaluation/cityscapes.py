# SPDX-License-Identifier: Apache-2.0
"""Cityscapes' own semantic segmentation scores, by cityscapesscripts.

Detectron2 has an evaluator of this name. Ours exists because that one does not run: since
2024-12-19 Detectron2's main branch imports cityscapesscripts from a path that exists only inside
Meta (detectron2#5436). Ours also takes SparseRefine's "labels", and runs on numpy 2.4.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import logging
import os
import tempfile
from collections import OrderedDict
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from .predictions import label_map_of

logger = logging.getLogger(__name__)


class CityscapesSemSegEvaluator(DatasetEvaluator):
    """IoU and instance-weighted iIoU of classes and categories, percent, as on Cityscapes' site.

    All processes must run on one machine: they write their predictions to one temporary folder,
    and the main one scores them.

    Args:
        dataset_name: its metadata has `gt_dir`, which holds CITY/*_gtFine_labelIds.png and
            *_gtFine_instanceIds.png.
    """

    def __init__(self, dataset_name: str):
        self._gt_dir = MetadataCatalog.get(dataset_name).gt_dir

    def reset(self) -> None:
        check_one_machine()
        self._folder = None
        if comm.is_main_process():
            self._folder = tempfile.TemporaryDirectory(prefix="cityscapes_eval_")
        self._folder_name = comm.all_gather(self._folder.name if self._folder else None)[0]

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        labels = import_cityscapesscripts("helpers.labels")
        ids = np.full(256, 255, dtype=np.uint8)  # Cityscapes' id of each training id
        for train_id, label in labels.trainId2label.items():
            if not label.ignoreInEval:
                ids[train_id] = label.id
        for image, output in zip(inputs, outputs):
            Image.fromarray(ids[label_map_of(output)]).save(self._prediction(image["file_name"]))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"sem_seg": {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}} on the main process, else None.

        Raises:
            FileNotFoundError: there is no truth, or a truth has no prediction.
        """
        comm.synchronize()
        if not comm.is_main_process():
            return None
        scoring = import_cityscapesscripts("evaluation.evalPixelLevelSemanticLabeling")
        gt_dir = PathManager.get_local_path(self._gt_dir)
        pattern = os.path.join(gt_dir, "*", "*_gtFine_labelIds.png")
        truths = sorted(glob.glob(pattern))
        if not truths:
            raise FileNotFoundError(f"no truth found as {pattern}")
        predictions = [
            self._prediction(truth.replace("gtFine_labelIds", "leftImg8bit")) for truth in truths
        ]
        # Found out here because cityscapesscripts ends the whole process at such an error.
        missing = [t for t, p in zip(truths, predictions) if not os.path.exists(p)]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(truths)} truths have no prediction, as {missing[0]}"
            )
        scoring.args.JSONOutput = False
        scoring.args.colorized = False
        scoring.args.bold = scoring.args.nocol = ""
        with _in1d():
            scores = scoring.evaluateImgLists(predictions, truths, scoring.args)
        self._folder.cleanup()
        names = {"IoU": "Classes", "iIoU": "InstClasses"}
        names.update({"IoU_sup": "Categories", "iIoU_sup": "InstCategories"})
        scores = {name: 100 * float(scores[f"averageScore{key}"]) for name, key in names.items()}
        logger.info(f"Cityscapes, {len(truths)} images: {scores}")
        return OrderedDict(sem_seg=scores)

    def _prediction(self, image_file: str) -> str:
        name = os.path.splitext(os.path.basename(image_file))[0]
        return os.path.join(self._folder_name, f"{name}_pred.png")


def check_one_machine() -> None:
    """
    Raises:
        RuntimeError: the processes run on several machines.
    """
    if comm.get_world_size() > 1 and comm.get_local_size() != comm.get_world_size():
        raise RuntimeError(
            f"Cityscapes' evaluation needs all processes on one machine, but "
            f"{comm.get_local_size()} of {comm.get_world_size()} are on this one: leave "
            "DATASETS.TEST empty and evaluate on one machine, or set the data set's evaluator_type "
            'to "sem_seg"'
        )


def import_cityscapesscripts(name: str):
    """The module `name` of cityscapesscripts.

    Raises:
        ImportError: it is not installed; says what to do.
    """
    try:
        return importlib.import_module(f"cityscapesscripts.{name}")
    except ImportError as error:
        raise ImportError(
            "Cityscapes' own scores need `pip install cityscapesscripts`; without it, set the data "
            'set\'s evaluator_type to "sem_seg" for mIoU and Boundary IoU'
        ) from error


@contextlib.contextmanager
def _in1d():
    """cityscapesscripts 2.3.0 calls `numpy.in1d`, which numpy 2.4 removed."""
    if hasattr(np, "in1d"):
        yield
        return
    np.in1d = lambda values, among, invert=False: np.isin(values, among, invert=invert).ravel()
    try:
        yield
    finally:
        del np.in1d
