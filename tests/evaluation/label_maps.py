# SPDX-License-Identifier: Apache-2.0
"""Label maps whose accuracies are worked out by hand, and outputs that hold them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

CLASSES = ["soil", "crop", "weed"]

# Truth: columns 0-2 soil, 3-5 crop. The prediction is one column late; see test_metrics.py for
# the boundary counts of this pair at a distance of one pixel: 9/17, 7/15.
TRUTH = np.array([[0, 0, 0, 1, 1, 1]] * 5, dtype=np.uint8)
LATE = np.array([[0, 0, 0, 0, 1, 1]] * 5, dtype=np.uint8)


class Refinement:
    """What a SparseRefine output holds, with the selected pixels' labels given."""

    def __init__(self, coarse_map, sites, coarse, refined, fused):
        self.sites = torch.as_tensor(sites, dtype=torch.int64).reshape(-1, 2)
        self.coarse, self.refined, self.fused = map(torch.as_tensor, (coarse, refined, fused))
        self.labels = torch.as_tensor(coarse_map)
        self.labels = self.label_map("fused")

    def label_map(self, kind):
        labels = self.labels.clone()
        labels[self.sites[:, 0], self.sites[:, 1]] = getattr(self, kind).to(labels.dtype)
        return labels


def register(name, folder, truths):
    """A data set of label files in a folder, in Detectron2's catalogs."""
    records = []
    for index, truth in enumerate(truths):
        file_name = Path(folder) / f"{index}_label.png"
        Image.fromarray(truth).save(file_name)
        records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(file_name)})
        records[-1].update(height=truth.shape[0], width=truth.shape[1])
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255)
    return records


def scores_of(labels):
    """Logits whose highest class is the label."""
    one_hot = torch.nn.functional.one_hot(torch.as_tensor(labels).long(), len(CLASSES))
    return one_hot.permute(2, 0, 1) * 2.5


def base_output(labels):
    return {"sem_seg": scores_of(labels)}


def late_refinement(labels_only):
    """Selects the wrong column 3: coarse wrong, refined right but for one pixel, fused right."""
    sites = [(y, 3) for y in range(5)]
    refinement = Refinement(LATE, sites, [0] * 5, [1, 1, 1, 1, 0], [1] * 5)
    answer = refinement.label_map("fused")
    output = {"labels": answer} if labels_only else {"sem_seg": scores_of(answer)}
    return {**output, "refinement": refinement}


def evaluate(evaluator, records, outputs):
    evaluator.reset()
    for record, output in zip(records, outputs):
        evaluator.process([record], [output])
    return evaluator.evaluate()["sparse_refine"]


def numbers(results):
    return {name: pytest.approx(value, nan_ok=True) for name, value in results.items()}
