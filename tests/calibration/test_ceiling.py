# SPDX-License-Identifier: Apache-2.0
"""What a refiner can reach at most, of predictions that are written down here."""

import numpy as np
import pytest
import torch
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.calibration.ceiling import Accuracy, Ceiling, Ceilings, measure, table, verdict
from sparse_refine.selector import BudgetSelector

TRUTH = np.zeros((16, 16), dtype=np.uint8)
TRUTH[:, 8:] = 1


class Painted(nn.Module):
    """Class 1 from a column on; unsure of the columns beside it."""

    def __init__(self, column, sure=8.0):
        super().__init__()
        self.column, self.sure = column, sure
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        results = []
        for item in inputs:
            height, width = item["image"].shape[-2:]
            at = (torch.arange(width) + 0.5) * 16 / width - self.column
            score = (at.clamp(-2, 2) * self.sure / 2).expand(height, width)
            results.append({"sem_seg": torch.stack([-score, score])})
        return results


def ceilings(base, fractions, dense=None, scales=(1.0,)):
    model = SparseRefine.wrap(base, num_classes=2, scale=1.0).eval()
    images = [({"image": torch.zeros(3, 16, 16)}, TRUTH)] * 2
    selectors = {fraction: BudgetSelector(fraction=fraction) for fraction in fractions}
    return measure(model, lambda: iter(images), selectors, scales, 2, 2, dense)


@pytest.fixture(autouse=True)
def a_model_of_lists(monkeypatch):
    """`Painted` speaks Detectron2's lists of dicts."""
    monkeypatch.setattr("sparse_refine.meta_arch.as_segmentor", lambda module, **_: module)


def test_the_truth_at_the_selected_pixels():
    """The base puts the edge two columns too far to the right: it is wrong at columns 8 and 9. An
    eighth of the pixels, the two columns nearest to its own edge, holds the second of them."""
    found = ceilings(Painted(10), (0.125, 0.25, 1.0))
    base = found.bases[1.0]
    assert base.miou == pytest.approx(100 * (8 / 10 + 6 / 8) / 2)
    eighth, quarter, all_of_it = (point.truth for point in found.points)
    assert eighth.miou == pytest.approx(100 * (8 / 9 + 7 / 8) / 2)
    assert quarter.miou == all_of_it.miou == quarter.boundary_iou == 100
    assert found.dense is None and found.points[0].dense is None
    assert "dense" not in table(found)
    assert "cannot be said" in verdict(found, 1.0, 0.25)


def test_a_dense_models_answers_there():
    """Its edge is one column too far: at the selected pixels it mends one of the two."""
    found = ceilings(Painted(10), (0.0625, 0.25), Painted(9))
    assert found.dense.miou == pytest.approx(100 * (8 / 9 + 7 / 8) / 2)
    nothing, quarter = found.points
    assert quarter.dense == found.dense and quarter.truth.miou == 100
    assert nothing.dense.miou < found.dense.miou
    said = verdict(found, 1.0, 0.25)
    assert "is as accurate as dense full" in said
    said = verdict(found, 1.0, 0.0625)
    assert "the claim cannot hold" in said and "Enough are 25 % at scale 1" in said
    rows = table(found).splitlines()
    assert len(rows) == 2 + 1 + 2 + 1 and "dense full there" in rows[0]


def test_ignored_pixels_and_other_scales():
    truth = TRUTH.copy()
    truth[:, 8:10] = 2  # where the base is wrong
    model = SparseRefine.wrap(Painted(10), num_classes=2, scale=0.5).eval()
    images = [({"image": torch.zeros(3, 16, 16)}, truth)]
    selectors = {0.25: BudgetSelector(fraction=0.25)}
    found = measure(model, lambda: iter(images), selectors, (0.25, 0.5), 2, 2)
    assert set(found.bases) == {0.25, 0.5} and model.coarse.scale == 0.5
    assert found.bases[0.5].miou == 100 and found.points[1].truth.miou == 100


def result(dense, truth, answers, seconds=1.0):
    point = Ceiling(0.25, 0.1, Accuracy(*truth), Accuracy(*answers))
    base = {0.25: Accuracy(50, 20)}
    return Ceilings([point], base, {0.25: seconds}, Accuracy(*dense), 6.0)


def test_what_is_said():
    said = verdict(result((80, 40), (79, 60), (70, 30)), 0.25, 0.1)
    assert "even the truth at the selected pixels the result is 79.00 / 60.00" in said
    assert "No scale and share that was looked at is enough" in said
    said = verdict(result((80, 40), (90, 60), (79.6, 39.1)), 0.25, 0.1)
    assert "as accurate" in said and "times as fast" not in said
    said = verdict(result((80, 40), (90, 60), (79.6, 39.1), seconds=2.5), 0.25, 0.1)
    assert "The base alone at scale 0.25 is 2.4 times as fast as dense full" in said
