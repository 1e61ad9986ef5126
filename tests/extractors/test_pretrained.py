# SPDX-License-Identifier: Apache-2.0
"""A dense model in place of the sparse UNet, with the weights that come with the repository."""

from pathlib import Path

import pytest
import torch

from sparse_refine import SparseRefine
from sparse_refine.config import load_config
from sparse_refine.ensembler import RefinedEnsembler
from sparse_refine.evaluation.budgets import one_coarse_pass
from sparse_refine.extractors import PretrainedExtractor, Selection
from sparse_refine.inference.loading import load_model
from sparse_refine.resampling import enlarge_labels
from sparse_refine.selector import BudgetSelector, EntropySelector
from sparse_refine.sites import View
from sparse_refine.training.trainer import Trainer

PROJECT = Path(__file__).parents[2] / "projects" / "SparseRefine"
CONFIG = str(PROJECT / "configs/synthetic_field/sparse_refine.yaml")
DENSE = str(PROJECT / "configs/synthetic_field/dense_full.yaml")
FULL = str(PROJECT / "weights/synthetic_field/dense_full.safetensors")
LOW = str(PROJECT / "weights/synthetic_field/dense_low.safetensors")
NODE = "MODEL.SPARSE_REFINE."


def config(*options, scale=0.5, base=FULL):
    return load_config(
        CONFIG,
        [
            *(f"{NODE}EXTRACTOR.NAME", "PretrainedExtractor", f"{NODE}EXTRACTOR.WEIGHTS", ""),
            *(f"{NODE}EXTRACTOR.TRAINED", "none", f"{NODE}ENSEMBLER.NAME", "RefinedEnsembler"),
            *(f"{NODE}EXTRACTOR.DEEPEST_STRIDE", 0),
            *(f"{NODE}BASE.WEIGHTS", base, f"{NODE}BASE.SCALE", scale),
            *("MODEL.WEIGHTS", "", f"{NODE}OUTPUT", "logits", "MODEL.DEVICE", "cpu"),
            *options,
        ],
    )


def field(height, width, seed=0):
    """A photograph of nothing: blobs that the models are unsure of."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((1, 3, max(2, height // 8), max(2, width // 8)), generator=generator)
    image = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")
    return {"image": (image[0] * 255).clamp(0, 255).to(torch.uint8)}


@pytest.fixture(scope="module")
def dense():
    return load_model(load_config(DENSE, ["MODEL.WEIGHTS", FULL, "MODEL.DEVICE", "cpu"]))


def predict(model, *items):
    with torch.inference_mode():
        return model(list(items))


@pytest.mark.parametrize("size", [(64, 96), (45, 70), (96, 32)])
def test_small_image_as_large_as_the_image(dense, size):
    """Nothing is approximated: dense full's logits, at whatever pixels are selected."""
    model = load_model(config(f"{NODE}SELECTOR.FRACTION", 0.2, scale=1.0))
    item = field(*size)
    (output,) = predict(model, item)
    assert 0.1 < output["refinement"].selected_fraction < 0.3
    (whole,) = predict(dense, item)
    torch.testing.assert_close(output["sem_seg"], whole["sem_seg"], rtol=1e-3, atol=1e-3)


def test_all_pixels_selected(dense):
    """Nothing is read from the small image: dense full, whatever the base is."""
    options = (f"{NODE}SELECTOR.FRACTION", 1.0, f"{NODE}EXTRACTOR.WEIGHTS", FULL)
    model = load_model(config(*options, scale=0.25, base=LOW))
    item = field(64, 96)
    (output,), (whole,) = predict(model, item), predict(dense, item)
    torch.testing.assert_close(output["sem_seg"], whole["sem_seg"], rtol=1e-3, atol=1e-3)


def test_a_batch_of_sizes_and_selections(dense):
    model = load_model(config(f"{NODE}EXTRACTOR.WEIGHTS", FULL, base=LOW))
    items = [field(64, 96), field(45, 70, 1), field(64, 96, 2)]
    together = predict(model, *items)
    for item, output in zip(items, together):
        (alone,) = predict(model, item)
        torch.testing.assert_close(output["sem_seg"], alone["sem_seg"], rtol=1e-3, atol=1e-3)
        assert output["sem_seg"].shape[-2:] == item["image"].shape[-2:]

    model.selector = EntropySelector(threshold=1e3)  # nothing at all
    for output in predict(model, *items):
        assert output["refinement"].selected_fraction == 0
        assert output["sem_seg"].isfinite().all()


def test_only_selected_pixels_change():
    model = load_model(config(f"{NODE}SELECTOR.FRACTION", 0.2))
    item = field(64, 96)
    (output,) = predict(model, item)
    refinement = output["refinement"]
    with torch.inference_mode():
        (coarse,) = model.coarse([item])
    changed = enlarge_labels(coarse.logits, (64, 96), "bilinear") != refinement.labels
    assert changed.any() and not (changed & ~refinement.selected()).any()
    model.output = "labels"
    assert torch.equal(predict(model, item)[0]["labels"], refinement.labels)


def test_budgets_on_one_coarse_pass():
    model, item = load_model(config()), field(64, 96)
    alone = []
    for share in (0.1, 0.4):
        model.selector = BudgetSelector(fraction=share)
        alone.append(predict(model, item)[0]["sem_seg"])
    with one_coarse_pass(model):
        for share, expected in zip((0.1, 0.4), alone):
            model.selector = BudgetSelector(fraction=share)
            assert torch.equal(predict(model, item)[0]["sem_seg"], expected)


def test_bfloat16_is_close():
    item = field(64, 96)
    exact = predict(load_model(config()), item)[0]["sem_seg"]
    (output,) = predict(load_model(config(f"{NODE}EXTRACTOR.PRECISION", "bfloat16")), item)
    assert output["sem_seg"].dtype == torch.float32
    difference = (output["sem_seg"] - exact).abs().max()
    assert 0 < difference < 0.1 * exact.std()


def test_wrap_without_a_config(dense):
    refiner = SparseRefine.wrap(
        dense,
        num_classes=3,
        selector=BudgetSelector(fraction=0.2),
        extractor=PretrainedExtractor(model=dense, base=dense, num_classes=3),
    ).eval()
    assert isinstance(refiner.ensembler, RefinedEnsembler)
    (output,) = predict(refiner, field(64, 96))
    (expected,) = predict(load_model(config(f"{NODE}SELECTOR.FRACTION", 0.2)), field(64, 96))
    assert (output["sem_seg"].argmax(0) == expected["sem_seg"].argmax(0)).float().mean() > 0.95


def test_pixels_are_normalised_as_the_model_wants_them():
    item = field(64, 96)
    (expected,) = predict(load_model(config()), item)
    (output,) = predict(load_model(config(f"{NODE}EXTRACTOR.PIXEL_MEAN", [0.0, 0.0, 0.0])), item)
    assert torch.equal(output["sem_seg"], expected["sem_seg"])


def test_weights_that_are_missing():
    """A UNet has none of its own; a dense model has to have those it is told."""
    unet = config(f"{NODE}EXTRACTOR.NAME", "SparseUNetExtractor")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is '': name the checkpoint"):
        load_model(unet)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is '': name the checkpoint"):
        load_model(config(base=""))
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_model(config(f"{NODE}EXTRACTOR.WEIGHTS", "nowhere.pth"))
    refiner = str(PROJECT / "weights/rgbweed/sparse_refine.safetensors")
    with pytest.raises(ValueError, match="does not fit .*Check MODEL.SPARSE_REFINE.EXTRACTOR.WEI"):
        load_model(config(f"{NODE}EXTRACTOR.WEIGHTS", refiner))


def test_training_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train here.*--eval-only"):
        Trainer.build_optimizer(config(), Trainer.build_model(config()))


def test_a_gate_beside_it_is_trained_alone():
    """It has to come from MODEL.WEIGHTS then, and the frozen networks need not."""
    gated = config(f"{NODE}ENSEMBLER.NAME", "GatedEnsembler")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is '': name the checkpoint"):
        load_model(gated)
    model = Trainer.build_model(gated).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = Trainer.build_optimizer(gated, model)
    item = {**field(64, 96), "sem_seg": torch.zeros(64, 96, dtype=torch.int64)}
    sum(model([item]).values()).backward()
    optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed and all(name.startswith("ensembler.") for name in changed)


def test_logits_from_a_cache_do_without_the_bases_pass():
    """Its feature maps are then made when they are asked for."""
    model = load_model(config())
    item = field(64, 96)
    with torch.inference_mode():
        (first,) = model([item])
        (out,) = model.coarse([item])
        view = View.of_input(item)
        sites = model._select([out], [view])
        coarse = model.coarse.at_sites([out], sites, [view])
        copy = out.context.clone()  # a tensor that the base has not seen
        refined = model.extractor(Selection(sites, [item["image"]], [copy], coarse, [view]))
    assert torch.equal(refined.argmax(1).to(torch.uint8), first["refinement"].refined)


def test_other_models_are_refused(make_cfg):
    with pytest.raises(ValueError, match="backbone and sem_seg_head; TinyBase has not both"):
        Trainer.build_model(
            make_cfg(
                *(f"{NODE}EXTRACTOR.NAME", "PretrainedExtractor"),
                *(f"{NODE}ENSEMBLER.NAME", "RefinedEnsembler"),
            )
        )


def test_another_number_of_classes(dense):
    extractor = PretrainedExtractor(model=dense, base=dense, num_classes=5)
    model = load_model(config())
    model.coarse.base = dense
    model.extractor = extractor.eval()
    with pytest.raises(ValueError, match=r"3 classes .*NUM_CLASSES \(5\)"):
        predict(model, field(64, 96))
