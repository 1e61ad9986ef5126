# SPDX-License-Identifier: Apache-2.0
"""Parts from outside the package: a file with classes, their keys, and their names in a yaml."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image

from sparse_refine import SparseRefine, SparseRefinePredictor, Trainer
from sparse_refine.config import load_config
from sparse_refine.data import read_labels
from sparse_refine.ensembler import ENSEMBLER_REGISTRY
from sparse_refine.extractors import EXTRACTOR_REGISTRY
from sparse_refine.inference.loading import load_model
from sparse_refine.selector import SELECTOR_REGISTRY
from sparse_refine.storage.weights import load_weights

from .tiny import tiny_images

YAML = """
VERSION: 2
PROJECTS: ["{root}/my_parts.py:add_my_config"]
MODEL:
  META_ARCHITECTURE: SparseRefine
  WEIGHTS: ""
  DEVICE: cpu
  MY: {{CHANNELS: 6, EVERY: 3, HIDDEN: 16, SHARE: 0.75}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 3}}
  PIXEL_MEAN: [127.0, 127.0, 127.0]
  PIXEL_STD: [64.0, 64.0, 64.0]
  SPARSE_REFINE:
    BASE: {{META_ARCHITECTURE: MyBase, WEIGHTS: "{root}/dense/model_final.pth", SCALE: 0.5}}
    SELECTOR: {{NAME: RowSelector}}
    EXTRACTOR: {{NAME: PixelMLP}}
    ENSEMBLER: {{NAME: ShareEnsembler}}
DATASETS:
  FOLDERS: [["outside_parts", "{root}/images", "{root}/labels"]]
  CLASS_NAMES: ["soil", "weed", "crop"]
  TRAIN: ("outside_parts",)
  TEST: ("outside_parts",)
INPUT:
  FORMAT: "RGB"
  RANDOM_FLIP: "horizontal"
  RESIZE_RANGE: [0.8, 1.25]
  CROP: {{ENABLED: True, TYPE: "absolute", SIZE: [24, 32]}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 4, BASE_LR: 0.01, WARMUP_ITERS: 0}}
DATALOADER: {{NUM_WORKERS: 0}}
SEED: 1
"""
REGISTRIES = (META_ARCH_REGISTRY, SELECTOR_REGISTRY, EXTRACTOR_REGISTRY, ENSEMBLER_REGISTRY)
DENSE = ("MODEL.META_ARCHITECTURE", "MyBase", "INPUT.SCALE", 0.5)
# The package's own parts on the outside's base, for what a subclass of SparseRefine does.
OWN_PARTS = (
    *("MODEL.SPARSE_REFINE.SELECTOR.NAME", "BudgetSelector"),
    *("MODEL.SPARSE_REFINE.EXTRACTOR.NAME", "SparseUNetExtractor"),
    *("MODEL.SPARSE_REFINE.EXTRACTOR.PRESET", "custom"),
    *("MODEL.SPARSE_REFINE.EXTRACTOR.CHANNELS", [4, 8]),
    *("MODEL.SPARSE_REFINE.ENSEMBLER.NAME", "GatedEnsembler"),
)


def cfg_of(folder, name, *options):
    options = [*options, "OUTPUT_DIR", str(folder / name)]
    return load_config(folder / "my.yaml", options, trust_code=True)


def weights(folder, name):
    return str(folder / name / "model_final.pth")


def predictor_of(folder, opts=()):
    given = (folder / "my.yaml", weights(folder, "refined"))
    return SparseRefinePredictor(*given, opts=opts, trust_code=True)


def train(cfg):
    """-> the model trained, and its tensors as they were before."""
    torch.manual_seed(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    return trainer.model, before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """my_parts.py, my.yaml, images and labels, and a trained base in dense/. What they registered
    is taken back."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copy(Path(__file__).with_name("parts_of_my_own.py"), folder / "my_parts.py")
    (folder / "my.yaml").write_text(YAML.format(root=folder))
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for index, (image, labels) in enumerate(tiny_images(count=4)):
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
    before = [dict(registry._obj_map) for registry in REGISTRIES]
    train(cfg_of(folder, "dense", *DENSE))
    yield folder
    for registry, objects in zip(REGISTRIES, before):
        registry._obj_map.clear()
        registry._obj_map.update(objects)
    DatasetCatalog.remove("outside_parts")
    MetadataCatalog.remove("outside_parts")


@pytest.fixture(scope="module")
def trained(folder):
    return train(cfg_of(folder, "refined"))


# ---- a selector, an extractor, an ensembler and a base -------------------------------------------


def test_every_part_is_the_outside_one_and_has_its_keys(trained):
    model, _ = trained
    parts = [model.coarse.base, model.selector, model.extractor, model.ensembler]
    names = [type(part).__name__ for part in parts]
    assert names == ["MyBase", "RowSelector", "PixelMLP", "ShareEnsembler"]
    assert model.coarse.base.net[0].out_channels == 6
    assert model.selector.every == 3
    assert model.extractor.layers[0].out_features == 16
    assert model.ensembler.share == 0.75
    assert model.extractor.given[0] is model.coarse.base


def test_training_moves_the_extractor_and_nothing_of_the_base(folder, trained):
    model, before = trained
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if name.startswith("extractor.")} != set()
    dense = load_weights(weights(folder, "dense"))["model"]
    assert all(torch.equal(after[f"coarse.base.{name}"], dense[name]) for name in dense)


def test_evaluation_and_prediction_agree(folder, trained):
    """What the predictor says of each image has the mIoU that the evaluation gave."""
    cfg = cfg_of(folder, "refined", "MODEL.WEIGHTS", weights(folder, "refined"))
    results = Trainer.test(cfg, load_model(cfg))["sparse_refine"]
    assert results["selected_fraction"] == pytest.approx(14 / 40)  # rows 0, 3, ... 39

    predictor = predictor_of(folder)
    counts = np.zeros((3, 3))
    for path in sorted((folder / "images").iterdir()):
        output = predictor(path)
        rows = output["selected"].all(1).nonzero()[:, 0].tolist()
        assert rows == list(range(0, 40, 3)) and output["selected"].sum() == 14 * 56
        truth = read_labels(str(folder / "labels" / path.name))
        np.add.at(counts, (truth, output["labels"].numpy().astype(int)), 1)
    hits = counts.diagonal()
    ious = 100 * hits / (counts.sum(0) + counts.sum(1) - hits)
    assert results["mIoU"] == pytest.approx(ious.mean(), abs=1e-6)


def test_keys_by_pairs_have_their_effect(folder, trained):
    def predict(*opts):
        return predictor_of(folder, opts)(folder / "images" / "0.png")

    output = predict("MODEL.MY.EVERY", 5, "MODEL.MY.SHARE", 0.0)
    assert output["selected"].all(1).nonzero()[:, 0].tolist() == list(range(0, 40, 5))
    assert torch.equal(output["labels"], output["coarse"])  # no share of the refined logits
    refinement = predict("MODEL.MY.SHARE", 1.0)["refinement"]
    assert torch.equal(refinement.fused, refinement.refined)
    with pytest.raises(KeyError, match="MODEL.MY.EVRY"):
        cfg_of(folder, "refined", "MODEL.MY.EVRY", 5)


# ---- a subclass of SparseRefine ------------------------------------------------------------------


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_a_subclass_is_what_it_is_a_subclass_of(folder, output, monkeypatch):
    """Weights, scores and labels, bit for bit: mapper, trainer, checkpoints, evaluators and
    predictor take it for a SparseRefine, whatever its name."""
    inputs, forward = [], SparseRefine.forward

    def recording(self, batched_inputs):
        if self.training:
            inputs.append(set(batched_inputs[0]))
        return forward(self, batched_inputs)

    monkeypatch.setattr(SparseRefine, "forward", recording)
    runs = []
    for name in ("SparseRefine", "OwnRefine"):
        run = f"{name}_{output}"
        options = ["MODEL.META_ARCHITECTURE", name, "MODEL.SPARSE_REFINE.OUTPUT", output]
        options += ["TEST.EVAL_PERIOD", 2, *OWN_PARTS]
        model, _ = train(cfg_of(folder, run, *options))
        assert type(model).__name__ == name and (folder / run / "model_best.pth").is_file()
        cfg = cfg_of(folder, run, *options, "MODEL.WEIGHTS", weights(folder, run))
        predictor = SparseRefinePredictor(cfg)
        assert predictor.refines
        predictor.set_budget(0.2)
        labels = predictor(folder / "images" / "1.png")["labels"]
        runs.append((model.state_dict(), Trainer.test(cfg, load_model(cfg)), labels))
    assert inputs and all({"context", "crop", "image", "sem_seg"} <= keys for keys in inputs)
    (ours, our_results, our_labels), (own, own_results, own_labels) = runs
    assert ours.keys() == own.keys() and all(torch.equal(ours[name], own[name]) for name in ours)
    assert torch.equal(our_labels, own_labels)
    # Detectron2's evaluator needs logits, and joins where the model returns them
    assert our_results.keys() == own_results.keys()
    assert ("sem_seg" in own_results) == (output == "logits")
    measured = {k: v for k, v in own_results["sparse_refine"].items() if "seconds" not in k}
    assert measured == {k: our_results["sparse_refine"][k] for k in measured}
    assert {"coarse/mIoU", "refined/mIoU", "selected_fraction"} <= measured.keys()


def test_a_subclass_is_no_base(folder):
    with pytest.raises(ValueError, match="BASE.META_ARCHITECTURE cannot be OwnRefine itself"):
        SparseRefine(cfg_of(folder, "x", "MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "OwnRefine"))


def test_a_subclass_needs_weights_for_its_base(folder):
    options = ("MODEL.META_ARCHITECTURE", "OwnRefine", "MODEL.SPARSE_REFINE.BASE.WEIGHTS", "")
    with pytest.raises(ValueError, match="the frozen base would keep random weights"):
        Trainer(cfg_of(folder, "x", *options)).resume_or_load(resume=False)
