# SPDX-License-Identifier: Apache-2.0
"""SparseRefinePredictor: what it returns, how it is made, and what it says where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from sparse_refine.data import build_test_loader
from sparse_refine.inference.loading import load_model
from sparse_refine.inference.predictor import SparseRefinePredictor
from sparse_refine.selector import BudgetSelector, EntropySelector, entropy
from sparse_refine.visualization.panel import refinement_panel

from .predicting import DENSE, LABELS, same


def test_output(predictor, image):
    made = predictor()
    output = made(image)
    assert output["sem_seg"].shape == (3, 48, 64) and output["sem_seg"].is_floating_point()
    for key in ("labels", "coarse", "selected"):
        assert output[key].shape == (48, 64), key
    labels, coarse, selected = output["labels"], output["coarse"], output["selected"]
    assert torch.equal(labels.long(), output["sem_seg"].argmax(0))
    assert 0 < selected.sum() < selected.numel()
    assert torch.equal(labels[~selected], coarse[~selected])
    assert (labels != coarse).any()
    # the base by itself on the small image
    item = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
    low = made.model.coarse([item])[0].logits
    assert torch.equal(output["entropy"], entropy(low)) and output["entropy"].shape == (24, 32)
    assert torch.equal(coarse.long(), low.argmax(0).repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert output["refinement"].selected_fraction == selected.float().mean()
    assert output["panoptic_seg"]  # what else the base returns
    assert not made.model.training
    output["labels"][0, 0] = 1  # a user may change what is his: no inference tensors


def test_labels_alone(predictor, image):
    logits = predictor()(image)
    output = predictor(*LABELS)(image)
    assert "sem_seg" not in output
    assert same(output, logits)


def test_dense(predictor, image):
    output = predictor(*DENSE, "INPUT.SCALE", 0.5)(image)
    assert output["sem_seg"].shape == (3, 48, 64)
    assert torch.equal(output["labels"].long(), output["sem_seg"].argmax(0))
    assert not {"coarse", "entropy", "selected", "refinement"} & set(output)


@pytest.mark.parametrize("options", [[], [*DENSE, "INPUT.SCALE", 0.5]], ids=["refined", "dense"])
def test_predicts_what_an_evaluation_sees(make_cfg, weights, tiny_dataset, options):
    name = tiny_dataset(count=1)
    options = [*options, "DATASETS.TEST", (name,), "INPUT.FORMAT", "BGR"]
    cfg = make_cfg(*options, "MODEL.WEIGHTS", weights(*options))
    batch = next(iter(build_test_loader(cfg, name)))
    with torch.no_grad():
        expected = load_model(cfg)(batch)[0]
    output = SparseRefinePredictor(cfg)(batch[0]["file_name"])
    assert torch.equal(output["sem_seg"], expected["sem_seg"])


def test_budget(predictor, image):
    made = predictor("MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD", 0.2)
    own = made(image)
    for fraction in (0.0, 0.05, 1.0):
        made.set_budget(fraction)
        assert isinstance(made.model.selector, BudgetSelector)
        assert made(image)["selected"].sum() == round(fraction * 48 * 64)
    made.set_budget(None)
    assert isinstance(made.model.selector, EntropySelector)
    assert same(made(image), own)
    with pytest.raises(ValueError, match="1.5"):
        made.set_budget(1.5)
    assert same(made(image), own)
    with pytest.raises(ValueError, match="TinyBase.*refines nothing"):
        predictor(*DENSE).set_budget(0.1)


def test_probabilities(predictor, image):
    for options in ([], DENSE):
        made = predictor(*options)
        output = made(image)
        shares = made.probabilities(output)
        assert torch.allclose(shares, output["sem_seg"].softmax(0))
    made = predictor(*LABELS)
    with pytest.raises(ValueError, match=r"OUTPUT to 'logits'"):
        made.probabilities(made(image))


def test_precision(predictor, make_cfg, weights, image):
    options = ["MODEL.SPARSE_REFINE.EXTRACTOR.PRECISION", "bfloat16"]
    made = SparseRefinePredictor(make_cfg(), weights(), opts=options)
    assert made.cfg.MODEL.SPARSE_REFINE.EXTRACTOR.PRECISION == "bfloat16"
    rough, fine = made(image)["sem_seg"], predictor()(image)["sem_seg"]
    assert not torch.equal(rough, fine)
    assert (rough.argmax(0) == fine.argmax(0)).float().mean() > 0.95


def test_config_from_yaml_and_weights_of_the_config(make_cfg, weights, image, tmp_path):
    path = weights()
    cfg = make_cfg()
    expected = SparseRefinePredictor(cfg, path)(image)
    assert cfg.MODEL.WEIGHTS == "" and not cfg.is_frozen()  # the caller's stays as it was
    yaml = tmp_path / "config.yaml"
    yaml.write_text(make_cfg("MODEL.WEIGHTS", path).dump())
    assert same(SparseRefinePredictor(yaml)(image), expected)
    budget = ["MODEL.SPARSE_REFINE.SELECTOR.NAME", "BudgetSelector"]
    made = SparseRefinePredictor(str(yaml), opts=budget)
    assert isinstance(made.model.selector, BudgetSelector)
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is ''"):
        SparseRefinePredictor(cfg)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        SparseRefinePredictor(cfg, tmp_path / "gone.pth")
    with pytest.raises(ValueError, match=r"'rgbweed/gone' is no file.*rgbweed/sparse_refine"):
        SparseRefinePredictor("rgbweed/gone")


@pytest.mark.parametrize(
    "opts, kind, message",
    [
        (["MODEL.NOTHING", 1], KeyError, r"Non-existent config key: MODEL\.NOTHING"),
        (["SEED", 1, "MODEL.DEVICE"], ValueError, "one KEY has no VALUE"),
        (["SEED", "many"], ValueError, "SEED"),
    ],
)
def test_bad_pairs_of_a_config(make_cfg, opts, kind, message):
    """As those of a yaml: engine.load_config."""
    with pytest.raises(kind, match=message):
        SparseRefinePredictor(make_cfg(), opts=opts)


def test_devices(make_cfg, weights, image):
    made = SparseRefinePredictor(make_cfg("MODEL.DEVICE", "cuda"), weights(), device="cpu")
    assert made.model.device.type == "cpu" and made(image)["labels"].device.type == "cpu"
    if not torch.cuda.is_available():
        anywhere = SparseRefinePredictor(make_cfg("MODEL.DEVICE", "cuda"), weights())
        assert anywhere.cfg.MODEL.DEVICE == "cpu"
        with pytest.raises(ValueError, match="'cuda'.*0 GPUs"):
            SparseRefinePredictor(make_cfg(), weights(), device="cuda")
    with pytest.raises(ValueError, match="'quantum'"):
        SparseRefinePredictor(make_cfg(), weights(), device="quantum")


def test_metadata(make_cfg, weights, tiny_dataset):
    path = weights()
    made = SparseRefinePredictor(make_cfg(), path).metadata
    assert made.stuff_classes == ["class 0", "class 1", "class 2"]
    assert len({tuple(color) for color in made.stuff_colors}) == 3
    name = tiny_dataset(count=1)
    made = SparseRefinePredictor(make_cfg("DATASETS.TEST", (name,)), path).metadata
    assert made.stuff_classes == ["soil", "crop", "weed"] and len(made.stuff_colors) == 3
    assert not hasattr(MetadataCatalog.get(name), "stuff_colors")  # the catalog's is not touched
    own = ["DATASETS.CLASS_NAMES", ["a", "b", "c"], "DATASETS.TEST", ("camvid_val",)]
    made = SparseRefinePredictor(make_cfg(*own), path).metadata  # CamVid has 11 classes
    assert made.stuff_classes == ["a", "b", "c"]
    made = SparseRefinePredictor(make_cfg("DATASETS.TEST", ("rgbweed_test",)), path).metadata
    assert made.stuff_colors == MetadataCatalog.get("rgbweed_test").stuff_colors
    assert made.ignore_label == 255


@pytest.mark.slow
def test_photograph(datasets_root, tmp_path, monkeypatch):
    """The shipped refiner on a real photograph, from another working directory."""
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    made = SparseRefinePredictor("rgbweed/sparse_refine", device="cpu")
    made.set_budget(0.02)
    output = made(datasets_root / "rgbweed" / "images" / "IMG_3473.jpg")
    assert output["labels"].shape == (2448, 3264)
    assert output["selected"].sum() == round(0.02 * 2448 * 3264)
    truth = np.asarray(Image.open(datasets_root / "rgbweed" / "labels" / "IMG_3473.png"))
    right = {key: (output[key].numpy() == truth).mean() for key in ("coarse", "labels")}
    assert 0.95 < right["coarse"] < right["labels"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(make_cfg, weights, image):
    path = weights()
    output = SparseRefinePredictor(make_cfg(), path, device="cuda")(image)
    expected = SparseRefinePredictor(make_cfg(), path)(image)
    for key in ("sem_seg", "labels", "coarse", "entropy", "selected"):
        assert output[key].device.type == "cuda", key
    assert (output["labels"].cpu() == expected["labels"]).float().mean() > 0.99
    metadata = SparseRefinePredictor(make_cfg(), path).metadata
    assert refinement_panel(image, output["refinement"], metadata).dtype == np.uint8
