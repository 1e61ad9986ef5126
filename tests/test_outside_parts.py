# SPDX-License-Identifier: Apache-2.0
"""Parts from outside the package: a file with classes, their keys, and their names in a yaml."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image

from sparse_refine import SparseRefine, SparseRefinePredictor, Trainer
from sparse_refine.config import load_config
from sparse_refine.data import read_image, read_labels
from sparse_refine.ensembler import ENSEMBLER_REGISTRY
from sparse_refine.extractors import EXTRACTOR_REGISTRY
from sparse_refine.inference.loading import load_model
from sparse_refine.modeling.building import refines
from sparse_refine.selector import SELECTOR_REGISTRY

PARTS = '''
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.ensembler import ENSEMBLER_REGISTRY
from sparse_refine.extractors import EXTRACTOR_REGISTRY, Extractor
from sparse_refine.modeling import Segmentor
from sparse_refine.selector import SELECTOR_REGISTRY, Selector


def add_my_config(cfg):
    cfg.MODEL.MY = CfgNode()
    cfg.MODEL.MY.CHANNELS = 4  # of the base
    cfg.MODEL.MY.EVERY = 2  # rows from one that is selected to the next
    cfg.MODEL.MY.HIDDEN = 8  # width of the extractor
    cfg.MODEL.MY.SHARE = 0.5  # of the refined logits in the fused ones


@META_ARCH_REGISTRY.register()
class MyBase(Segmentor):
    @configurable
    def __init__(self, *, num_classes, channels, **options):
        super().__init__(size_divisibility=4, **options)
        self.net = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=4),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, num_classes, 1),
        )

    @classmethod
    def from_config(cls, cfg):
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "channels": cfg.MODEL.MY.CHANNELS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def scores(self, images):
        return self.net(images)


@SELECTOR_REGISTRY.register()
class RowSelector(Selector):
    """Every so many rows of the whole image, whatever the base says."""

    @configurable
    def __init__(self, *, every):
        super().__init__()
        self.every = every

    @classmethod
    def from_config(cls, cfg):
        return {"every": cfg.MODEL.MY.EVERY}

    def forward(self, logits, view):
        rows = (torch.arange(view.height, device=logits.device) + view.top) % self.every == 0
        return rows[:, None].expand(view.height, view.width).nonzero()


@EXTRACTOR_REGISTRY.register()
class PixelMLP(Extractor):
    @configurable
    def __init__(self, *, num_classes, hidden, base):
        super().__init__()
        self.given = [base]  # in a list: no part of this module
        self.layers = nn.Sequential(
            nn.Linear(5 + num_classes, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    @classmethod
    def from_config(cls, cfg, base):
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        return {"num_classes": classes, "hidden": cfg.MODEL.MY.HIDDEN, "base": base}

    def forward(self, selection):
        parts = [selection.pixels() / 255, selection.coarse.softmax(1), selection.position()]
        return self.layers(torch.cat(parts, dim=1))


@ENSEMBLER_REGISTRY.register()
class ShareEnsembler(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.share = cfg.MODEL.MY.SHARE

    def forward(self, coarse, refined):
        return (1 - self.share) * coarse + self.share * refined


@META_ARCH_REGISTRY.register()
class OwnRefine(SparseRefine):
    """The same under another name."""
'''
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
    return load_config(folder / "my.yaml", [*options, "OUTPUT_DIR", str(folder / name)])


def train(cfg):
    torch.manual_seed(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """my_parts.py, my.yaml, images and labels, and a trained base in dense/. What they registered
    is taken back."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "my_parts.py").write_text(PARTS)
    (folder / "my.yaml").write_text(YAML.format(root=folder))
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for index in range(4):
        labels = random.integers(0, 3, (5, 7)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        image = (labels[..., None] * 80 + random.integers(0, 40, (40, 56, 3))).astype(np.uint8)
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


def test_every_part_is_the_outside_one_and_has_its_keys(trained):
    model = trained.model
    parts = [model.coarse.base, model.selector, model.extractor, model.ensembler]
    names = [type(part).__name__ for part in parts]
    assert names == ["MyBase", "RowSelector", "PixelMLP", "ShareEnsembler"]
    assert model.coarse.base.net[0].out_channels == 6
    assert model.selector.every == 3
    assert model.extractor.layers[0].out_features == 16
    assert model.ensembler.share == 0.75
    assert model.extractor.given[0] is model.coarse.base


def test_training_moves_the_extractor_and_nothing_of_the_base(folder, trained):
    base = load_model(cfg_of(folder, "dense", *DENSE, "MODEL.WEIGHTS", weights(folder, "dense")))
    for name, tensor in base.state_dict().items():
        assert torch.equal(trained.model.coarse.base.state_dict()[name], tensor), name
    fresh = Trainer.build_model(cfg_of(folder, "refined")).extractor.state_dict()
    torch.manual_seed(1)
    for name, tensor in trained.model.extractor.state_dict().items():
        assert not torch.equal(tensor, fresh[name]), name


def weights(folder, name):
    return str(folder / name / "model_final.pth")


def test_evaluation_and_prediction_agree(folder, trained):
    """What the predictor says of each image has the mIoU that the evaluation gave."""
    cfg = cfg_of(folder, "refined", "MODEL.WEIGHTS", weights(folder, "refined"))
    results = Trainer.test(cfg, load_model(cfg))["sparse_refine"]
    assert results["selected_fraction"] == pytest.approx(14 / 40)  # rows 0, 3, ... 39

    predictor = SparseRefinePredictor(folder / "my.yaml", weights(folder, "refined"))
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
    image = read_image(str(folder / "images" / "0.png"), format="RGB")
    opts = ["MODEL.MY.EVERY", 5, "MODEL.MY.SHARE", 0.0]
    output = SparseRefinePredictor(folder / "my.yaml", weights(folder, "refined"), opts=opts)(image)
    assert output["selected"].all(1).nonzero()[:, 0].tolist() == list(range(0, 40, 5))
    assert torch.equal(output["labels"], output["coarse"])  # no share of the refined logits
    opts = ["MODEL.MY.SHARE", 1.0]
    output = SparseRefinePredictor(folder / "my.yaml", weights(folder, "refined"), opts=opts)(image)
    refinement = output["refinement"]
    assert torch.equal(refinement.fused, refinement.refined)
    with pytest.raises(KeyError, match="MODEL.MY.EVRY"):
        cfg_of(folder, "refined", "MODEL.MY.EVRY", 5)


# ---- a subclass of SparseRefine ------------------------------------------------------------------


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_a_subclass_is_what_it_is_a_subclass_of(folder, output, monkeypatch):
    """Losses, weights, scores and predictions, bit for bit; so mapper, trainer, checkpoints and
    evaluators take it for a SparseRefine, whatever its name."""
    seen, forward = [], SparseRefine.forward

    def recording(self, inputs):
        seen.append((type(self).__name__, self.training, sorted(inputs[0])))
        return forward(self, inputs)

    monkeypatch.setattr(SparseRefine, "forward", recording)
    runs = {}
    for name in ("SparseRefine", "OwnRefine"):
        options = ["MODEL.META_ARCHITECTURE", name, "MODEL.SPARSE_REFINE.OUTPUT", output]
        options += ["TEST.EVAL_PERIOD", 2, *OWN_PARTS]
        cfg = cfg_of(folder, f"{name}_{output}", *options)
        assert refines(cfg)
        trainer = train(cfg)
        assert type(trainer.model).__name__ == name
        cfg = cfg_of(
            folder,
            f"{name}_{output}",
            *options,
            "MODEL.WEIGHTS",
            weights(folder, f"{name}_{output}"),
        )
        results = Trainer.test(cfg, load_model(cfg))
        predictor = SparseRefinePredictor(cfg)
        assert predictor.refines
        predictor.set_budget(0.2)
        runs[name] = {
            "state": trainer.model.state_dict(),
            "best": (folder / f"{name}_{output}" / "model_best.pth").is_file(),
            "results": results,
            "labels": predictor(folder / "images" / "1.png")["labels"],
        }
    ours, own = runs["SparseRefine"], runs["OwnRefine"]
    assert ours["state"].keys() == own["state"].keys() and ours["best"] and own["best"]
    assert all(torch.equal(tensor, own["state"][name]) for name, tensor in ours["state"].items())
    assert torch.equal(ours["labels"], own["labels"])
    # Detectron2's evaluator needs logits, and joins where the model returns them
    assert set(own["results"]) == set(ours["results"])
    assert ("sem_seg" in own["results"]) == (output == "logits")
    measured = {k: v for k, v in own["results"]["sparse_refine"].items() if "seconds" not in k}
    assert measured == {k: ours["results"]["sparse_refine"][k] for k in measured}
    assert {"coarse/mIoU", "refined/mIoU", "selected_fraction"} <= set(measured)
    inputs = {
        keys
        for name, training, keys in map(lambda s: (s[0], s[1], tuple(s[2])), seen)
        if training and name == "OwnRefine"
    }
    assert all({"context", "crop", "image", "sem_seg"} <= set(keys) for keys in inputs) and inputs


def test_a_subclass_is_no_base(folder):
    with pytest.raises(ValueError, match="BASE.META_ARCHITECTURE cannot be OwnRefine itself"):
        SparseRefine(cfg_of(folder, "x", "MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "OwnRefine"))


def test_a_subclass_needs_weights_for_its_base(folder):
    options = ("MODEL.META_ARCHITECTURE", "OwnRefine", "MODEL.SPARSE_REFINE.BASE.WEIGHTS", "")
    with pytest.raises(ValueError, match="the frozen base would keep random weights"):
        Trainer(cfg_of(folder, "x", *options)).resume_or_load(resume=False)
