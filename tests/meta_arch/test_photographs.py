# SPDX-License-Identifier: Apache-2.0
"""Real photographs of 8 megapixels, through the mapper and a tiny SparseRefine."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from PIL import Image, ImageOps

from sparse_refine import SparseRefine
from sparse_refine.config import load_config
from sparse_refine.data import SegmentationMapper, register_image_label_folder
from sparse_refine.data.reading import read_labels
from sparse_refine.evaluation.comparison import IN_PROCESS
from sparse_refine.inference.loading import load_model
from sparse_refine.selector import EntropySelector
from sparse_refine.sparse.minkowski_engine import minkowski_available

TRAINED = Path(__file__).parents[2] / "projects/SparseRefine"
METHOD = "MODEL.SPARSE_REFINE."


def first_dict(root):
    """The first test photograph, registered below a name of this test's own."""
    folder = root / "rgbweed"
    name = "rgbweed_of_a_test"
    register_image_label_folder(
        name,
        folder / "images",
        folder / "labels",
        ["soil", "crop", "weed"],
        split_file=folder / "test.txt",
    )
    try:
        return DatasetCatalog.get(name)[0]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.slow
def test_a_native_photograph(datasets_root, make_cfg):
    item = first_dict(datasets_root)
    cfg = make_cfg(
        METHOD + "OUTPUT", "labels",
        METHOD + "BASE.SCALE", 0.25,
        METHOD + "SELECTOR.NAME", "BudgetSelector",
        METHOD + "SELECTOR.FRACTION", 0.02,
        METHOD + "EXTRACTOR.FEATURES", ["rgb", "probabilities"],
    )  # fmt: skip
    given = SegmentationMapper(cfg, is_train=False)(item)
    height, width = item["height"], item["width"]
    assert height * width == 3264 * 2448
    assert (given["height"], given["width"]) == (height, width)
    assert given["image"].shape == (3, height, width)
    # upright, as a viewer shows it, and as the labels are
    with Image.open(item["file_name"]) as image:
        assert image.getexif()[0x0112] == 3  # stored upside down
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(given["image"].permute(1, 2, 0).numpy(), upright)
    assert read_labels(item["sem_seg_file_name"]).shape == (height, width)

    with torch.no_grad():
        (output,) = SparseRefine(cfg).eval()([given])
    refinement = output["refinement"]
    assert output["labels"].shape == (height, width) and output["labels"].dtype == torch.uint8
    assert "sem_seg" not in output
    assert len(refinement.sites) == round(0.02 * height * width)
    assert torch.equal(output["labels"], refinement.label_map("fused"))
    assert set(output["labels"].unique().tolist()) <= {0, 1, 2}


def test_a_training_crop_of_a_native_photograph(datasets_root, make_cfg):
    item = {**first_dict(datasets_root), "seed": 4}
    cfg = make_cfg("INPUT.CROP.SIZE", [384, 512], METHOD + "BASE.SCALE", 0.25)
    given = SegmentationMapper(cfg, is_train=True)(item)
    assert given["image"].shape == (3, 384, 512) and given["sem_seg"].shape == (384, 512)
    assert set(given["sem_seg"].unique().tolist()) <= {0, 1, 2, 255}
    full = given["crop"][2:]
    factor = full[0] / item["height"]
    assert 0.49 < factor < 2.01 and abs(full[1] / item["width"] - factor) < 1e-3
    assert given["context"].shape[1:] == (round(full[0] * 0.25), round(full[1] * 0.25))
    # crop and context show the same place: brought to one size, they look alike
    top, left = given["crop"][:2]
    context = given["context"].float()
    window = context[
        :, round(top / 4) : round((top + 384) / 4), round(left / 4) : round((left + 512) / 4)
    ]
    small = torch.nn.functional.interpolate(
        given["image"][None].float(), size=window.shape[1:], mode="bilinear", antialias=True
    )[0]
    pairs = torch.stack([small.flatten(), window.flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.9
    losses = SparseRefine(cfg).train()([given])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.slow
def test_bfloat16_and_the_reference_engine_keep_the_labels(datasets_root):
    """The trained refiner on a part of a test photograph: each run gives the same labels, bfloat16
    changes fewer than 0.1 % of them, and MinkowskiEngine next to none."""
    weights = str(TRAINED / "weights/rgbweed/sparse_refine.safetensors")
    base = str(TRAINED / "weights/rgbweed/dense_low.safetensors")
    options = ["MODEL.WEIGHTS", weights, METHOD + "BASE.WEIGHTS", base, *IN_PROCESS]
    model = load_model(load_config(TRAINED / "configs/rgbweed/sparse_refine.yaml", options))
    model.selector = EntropySelector(threshold=0.3)  # uncertain pixels, however many in this part
    image = detection_utils.read_image(first_dict(datasets_root)["file_name"], format="RGB")
    image = torch.from_numpy(image[800:1824, 1000:2024].copy()).permute(2, 0, 1)

    def labels(precision="float32", backend="torch"):
        model.extractor.precision, model.extractor.backend = precision, backend
        with torch.no_grad():
            (output,) = model([{"image": image}])
        return output["labels"], len(output["refinement"].sites)

    exact, selected = labels()
    assert selected > 0.02 * exact.numel()
    assert torch.equal(labels()[0], exact)
    rounded, _ = labels("bfloat16")
    assert torch.equal(labels("bfloat16")[0], rounded)
    assert 0 < (rounded != exact).sum() < 0.001 * exact.numel()
    if minkowski_available():
        assert (labels(backend="minkowski")[0] != exact).sum() <= 1e-6 * exact.numel()
