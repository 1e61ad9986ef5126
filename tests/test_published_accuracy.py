# SPDX-License-Identifier: Apache-2.0
"""The accuracy of the shipped weights that the model zoo's page publishes, measured again on the
test photographs of rgbweed."""

import os
from pathlib import Path

import pytest
import torch

from sparse_refine import Trainer
from sparse_refine.evaluation import SparseRefineEvaluator
from sparse_refine.inference import model_zoo
from sparse_refine.inference.loading import load_model

PAGE = Path(__file__).resolve().parents[1] / "projects" / "SparseRefine" / "README.md"
NAMES = ("rgbweed/dense_low", "rgbweed/sparse_refine_fast", "rgbweed/sparse_refine")
TOLERANCE = 0.05  # points: another processor rounds other pixels


def published(text: str) -> dict[str, dict[str, float]]:
    """Name of a model -> {"mIoU", "boundary IoU"}: of the page's table that has both columns and
    models' names in its first."""
    found, columns = {}, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
        elif {"mIoU", "boundary IoU"} <= set(columns) and cells[0].startswith("`"):
            row = dict(zip(columns, cells))
            found[cells[0].strip("`")] = {key: float(row[key]) for key in ("mIoU", "boundary IoU")}
    return found


def test_the_table_is_understood():
    text = (
        "| name | mIoU | boundary IoU |\n|---|---|---|\n| `a/b` | 81.4 | 28.87 |\n\n| `c/d` | 1 |\n"
    )
    assert published(text) == {"a/b": {"mIoU": 81.4, "boundary IoU": 28.87}}


def test_the_page_has_every_shipped_model():
    assert set(published(PAGE.read_text())) == set(model_zoo.names())


@pytest.fixture
def all_threads():
    """Photographs of 8 megapixels are worth more than the one thread of tiny tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_have_the_published_accuracy(datasets_root, all_threads, tmp_path, name):
    options = ["OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", 0, "MODEL.DEVICE", "cpu"]
    cfg = model_zoo.get_config(name, options)
    evaluator = SparseRefineEvaluator("rgbweed_test", tmp_path)
    results = Trainer.test(cfg, load_model(cfg), evaluators=[evaluator])["sparse_refine"]
    measured = {"mIoU": results["mIoU"], "boundary IoU": results["BoundaryIoU"]}
    assert measured == pytest.approx(published(PAGE.read_text())[name], abs=TOLERANCE)
