# SPDX-License-Identifier: Apache-2.0
"""A dense network that is trained at the selected pixels: its two forms, what of it is trained, and
a network of its own beside any base."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from sparse_refine.base import Teacher
from sparse_refine.config import load_config
from sparse_refine.extractors import PretrainedExtractor
from sparse_refine.inference.loading import load_model
from sparse_refine.modeling.building import build_model
from sparse_refine.resampling import downsample
from sparse_refine.sites import Sites
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

PROJECT = Path(__file__).parents[2] / "projects" / "SparseRefine"
CONFIG = str(PROJECT / "configs/synthetic_field/sparse_refine.yaml")
FULL = str(PROJECT / "weights/synthetic_field/dense_full.safetensors")
LOW = str(PROJECT / "weights/synthetic_field/dense_low.safetensors")
NODE = "MODEL.SPARSE_REFINE."
OWN = {
    "META_ARCHITECTURE": "SemanticSegmentor",
    "BACKBONE": {"NAME": "build_efficientnet_lite_fpn_backbone"},
    "EFFICIENTNET_LITE": {"OUT_FEATURES": ["res2", "res3"]},
    "FPN": {"IN_FEATURES": ["res2", "res3"], "OUT_CHANNELS": 16, "NORM": "BN"},
    "SEM_SEG_HEAD": {
        **{"NAME": "SemSegFPNHead", "IN_FEATURES": ["p2", "p3"], "CONVS_DIM": 16, "NORM": "BN"}
    },
}


def build(*options, scale=0.25):
    return build_model(config(*options, scale=scale))


def config(*options, scale=0.25):
    return load_config(
        CONFIG,
        [
            *(f"{NODE}EXTRACTOR.NAME", "PretrainedExtractor", f"{NODE}EXTRACTOR.TRAINED", "all"),
            *(f"{NODE}EXTRACTOR.WEIGHTS", FULL, f"{NODE}EXTRACTOR.MODEL", {}),
            *(f"{NODE}TEACHER.WEIGHTS", "", f"{NODE}LOSS.DISTILLATION_WEIGHT", 0.0),
            *(f"{NODE}ENSEMBLER.NAME", "RefinedEnsembler", f"{NODE}LOSS.FUSED_WEIGHT", 0.0),
            *(f"{NODE}EXTRACTOR.DEEPEST_STRIDE", 0),
            *(f"{NODE}BASE.WEIGHTS", LOW, f"{NODE}BASE.SCALE", scale),
            *(f"{NODE}SELECTOR.FRACTION", 0.3, f"{NODE}SELECTOR.TRAIN_FRACTIONS", []),
            *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *options),
        ],
    )


def item(height, width, crop=None, seed=0):
    """A training input: blobs, random labels; `crop` (top, left, height, width) of it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((1, 3, height // 8, width // 8), generator=generator)
    image = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0]
    image = (image * 255).clamp(0, 255).to(torch.uint8)
    labels = torch.randint(3, (height, width), generator=generator)
    if crop is None:
        return {"image": image, "sem_seg": labels}
    top, left, h, w = crop
    window = (slice(top, top + h), slice(left, left + w))
    context = downsample(image, (height // 4, width // 4))
    place = (top, left, height, width)
    return {
        "image": image[:, window[0], window[1]],
        **{"sem_seg": labels[window], "context": context, "crop": place},
    }


@pytest.mark.parametrize("crop", [None, (0, 0, 64, 96), (37, 50, 70, 81), (64, 32, 96, 160)])
def test_the_form_of_training_equals_that_of_inference(crop):
    """To 1e-5 of the logits' range, at any place and size of a crop."""
    model = build().train()
    given = []
    model.extractor.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    model([item(160, 192, crop)])
    (selection,) = given
    assert len(selection.sites) > 500
    refined = model.extractor(selection)
    expected = model.extractor.eval()(selection)
    assert refined.requires_grad and not expected.requires_grad
    assert (refined - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "part, names",
    [
        ("norms", (".norm.weight", ".norm.bias", "bn0.weight", "bn0.bias", "bn1.weight")),
        ("head", ("model.sem_seg_head.",)),
        ("all", ("model.",)),
    ],
)
def test_parts_that_are_trained(part, names):
    cfg = config(f"{NODE}EXTRACTOR.TRAINED", part)
    model = Trainer.build_model(cfg).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = Trainer.build_optimizer(cfg, model)
    sum(model([item(64, 96)]).values()).backward()
    optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed and all(name.startswith("extractor.model.") for name in changed)
    assert not any("running" in name or "num_batches" in name for name in changed)
    if part == "norms":
        modules = dict(model.named_modules())
        assert all("Norm" in type(modules[n.rpartition(".")[0]]).__name__ for n in changed)
    else:
        assert all(any(part in name for part in names) for name in changed)
    if part == "all":
        parameters = {n for n, p in model.named_parameters() if n.startswith("extractor.")}
        assert len(changed) > 0.95 * len(parameters)


def test_nothing_selected_still_touches_every_parameter():
    model = build(f"{NODE}SELECTOR.FRACTION", 0.0).train()
    sum(model([item(64, 96)]).values()).backward()
    gradients = [p.grad for p in model.extractor.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_the_base_is_the_start_where_nothing_else_is_named():
    """A copy of it is trained; the base itself stays frozen."""
    model = build(f"{NODE}EXTRACTOR.WEIGHTS", "")
    own, base = (m.state_dict() for m in (model.extractor.model, model.coarse.base))
    assert all(torch.equal(own[name], base[name]) for name in base)
    assert all(own[name].data_ptr() != base[name].data_ptr() for name in base)
    assert not any(p.requires_grad for p in model.coarse.parameters())


def test_a_network_of_its_own_beside_any_base(make_cfg):
    """It runs on the small image itself; the base has neither a backbone nor maps to read."""
    options = [
        *(f"{NODE}EXTRACTOR.NAME", "PretrainedExtractor", f"{NODE}EXTRACTOR.MODEL", OWN),
        *(f"{NODE}EXTRACTOR.TRAINED", "all", f"{NODE}ENSEMBLER.NAME", "RefinedEnsembler"),
        *(f"{NODE}LOSS.FUSED_WEIGHT", 0.0, "SOLVER.BASE_LR", 0.003),
    ]
    cfg = make_cfg(*options)
    model = Trainer.build_model(cfg).train()
    assert type(model.coarse.base).__name__ == "TinyBase"
    optimizer = Trainer.build_optimizer(cfg, model)
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    inputs = item(64, 96)
    inputs["sem_seg"] = (inputs["image"][0] > 128).long().clamp(max=classes - 1)
    losses = []
    for _ in range(12):
        (loss,) = model([inputs]).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    with torch.inference_mode():
        (output,) = model.eval()([{"image": inputs["image"]}])
    assert output["sem_seg"].shape == (classes, 64, 96)


def test_own_keys_are_those_of_a_model(make_cfg):
    wrong = {"BACKBON": {"NAME": "x"}}
    options = (f"{NODE}EXTRACTOR.NAME", "PretrainedExtractor", f"{NODE}EXTRACTOR.MODEL", wrong)
    with pytest.raises(KeyError, match="EXTRACTOR.MODEL: .*BACKBON"):
        build_model(make_cfg(*options))
    with pytest.raises(ValueError, match="EXTRACTOR.TRAINED is 'every': one of"):
        build(f"{NODE}EXTRACTOR.TRAINED", "every")


def test_a_checkpoint_holds_it(tmp_path):
    model = build()
    torch.save({"model": model.state_dict()}, tmp_path / "refiner.pth")
    with torch.no_grad():
        for parameter in model.extractor.parameters():
            parameter.add_(0.1)
    torch.save({"model": model.state_dict()}, tmp_path / "refiner.pth")
    cfg = config("MODEL.WEIGHTS", str(tmp_path / "refiner.pth"), f"{NODE}EXTRACTOR.WEIGHTS", "")
    loaded = load_model(cfg).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_network_without_weights_is_not_evaluated(make_cfg, tmp_path):
    """The base has its own; the network of EXTRACTOR.MODEL has none."""
    base = build_model(make_cfg()).coarse.base
    save_weights(base.state_dict(), str(tmp_path / "base.safetensors"))
    options = [f"{NODE}BASE.WEIGHTS", str(tmp_path / "base.safetensors")]
    options += [f"{NODE}EXTRACTOR.NAME", "PretrainedExtractor", f"{NODE}EXTRACTOR.MODEL", OWN]
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is ''"):
        load_model(make_cfg(*options, f"{NODE}ENSEMBLER.NAME", "RefinedEnsembler"))


def test_the_base_itself_is_not_trained():
    model = build()
    base = model.coarse.base
    with pytest.raises(ValueError, match="the base is frozen: train a copy"):
        PretrainedExtractor(model=base, base=base, num_classes=3, trained="all")


def test_saved_and_copied_whole():
    """Feature maps that are kept are no part of it, and hooks are the copy's own."""
    model = build().eval()
    inputs = [{"image": item(64, 96)["image"]}]
    with torch.inference_mode():
        expected = model(inputs)[0]["labels"]
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert torch.equal(other(inputs)[0]["labels"], expected)


def test_maps_are_not_kept_in_training():
    """A data loader may keep an image's context for good."""
    model = build().train()
    inputs = item(64, 96, (0, 0, 32, 32))
    for _ in range(2):
        sum(model([inputs]).values()).backward()
        assert len(model.extractor._features._traces) == 0


class TestTeacher:
    OPTIONS = (f"{NODE}TEACHER.WEIGHTS", FULL, f"{NODE}LOSS.DISTILLATION_WEIGHT", 0.5)

    def test_its_own_answer_teaches_nothing(self):
        """The network is the teacher, and every pixel of the crop is selected."""
        model = build(*self.OPTIONS, f"{NODE}SELECTOR.FRACTION", 1.0).train()
        losses = model([item(64, 96)])
        assert set(losses) == {"loss_refined", "loss_distillation"}
        assert losses["loss_distillation"].item() == pytest.approx(0, abs=1e-4)

    def test_pixels_without_a_label_are_taught(self):
        model = build(*self.OPTIONS).train()
        inputs = item(64, 96)
        inputs["sem_seg"][:] = 255
        losses = model([inputs])
        assert losses["loss_refined"].item() == 0 and losses["loss_distillation"].item() > 0
        losses["loss_distillation"].backward()
        assert any(p.grad.any() for p in model.extractor.parameters())

    def test_it_is_in_no_checkpoint_and_built_late(self):
        model = build(f"{NODE}TEACHER.WEIGHTS", "nowhere.pth", *self.OPTIONS[2:])
        assert not any("teacher" in name for name in model.state_dict())
        with torch.inference_mode():
            model.eval()([{"image": item(64, 96)["image"]}])  # needs none
        with pytest.raises(FileNotFoundError, match="nowhere.pth"):
            model.train()([item(64, 96)])

    def test_its_scores_are_read_as_the_bases_are(self):
        """A model of the base's architecture returns what the base does."""
        dense = build().extractor.model.requires_grad_(False)

        class Probabilities(nn.Module):
            def forward(self, inputs):
                return [{"sem_seg": out["sem_seg"].softmax(0)} for out in dense(inputs)]

        cfg = config(*self.OPTIONS, f"{NODE}BASE.SCORE_TYPE", "probabilities")
        teacher = Teacher.from_config(cfg)
        teacher.build = Probabilities
        image = item(64, 96)["image"]
        sites = Sites.of_masks([torch.ones(64, 96, dtype=torch.bool)])
        size = {"height": 64, "width": 96}
        expected = dense([{"image": image, **size}])[0]["sem_seg"].softmax(0).flatten(1).t()
        torch.testing.assert_close(teacher([image], sites).softmax(1), expected)

    def test_nothing_that_is_named_does_nothing(self):
        own = config(*self.OPTIONS[2:], f"{NODE}TEACHER.MODEL", {"FPN": {"OUT_CHANNELS": 32}})
        with pytest.raises(ValueError, match="TEACHER.MODEL is set, and .*WEIGHTS is ''"):
            build_model(own)
        with pytest.raises(ValueError, match="TEACHER.WEIGHTS is .*DISTILLATION_WEIGHT is 0"):
            build(*self.OPTIONS[:2])

    def test_the_start_of_the_extractor_is_the_teacher_where_none_is_named(self):
        model = build(*self.OPTIONS[2:], f"{NODE}SELECTOR.FRACTION", 1.0).train()
        losses = model([item(64, 96)])
        assert losses["loss_distillation"].item() == pytest.approx(0, abs=1e-4)
        model = build(*self.OPTIONS[2:], f"{NODE}EXTRACTOR.WEIGHTS", "").train()
        with pytest.raises(ValueError, match="name the checkpoint of the teacher"):
            model([item(64, 96)])


def test_shares_drawn_in_training():
    model = build(f"{NODE}SELECTOR.TRAIN_FRACTIONS", [0.1, 0.5]).train()
    shares = []
    model.extractor.register_forward_pre_hook(
        lambda _, args: shares.append(len(args[0].sites) / (64 * 96))
    )
    torch.manual_seed(0)
    for _ in range(6):
        model([item(64, 96)])
    assert len(set(shares)) > 3 and min(shares) >= 0.1 and max(shares) <= 0.5
    with torch.inference_mode():
        model.eval()([{"image": item(64, 96)["image"]}])
    assert shares[-1] == pytest.approx(0.3, abs=0.001)
    with pytest.raises(ValueError, match="TRAIN_FRACTIONS is .0.5, 0.1."):
        build(f"{NODE}SELECTOR.TRAIN_FRACTIONS", [0.5, 0.1])
