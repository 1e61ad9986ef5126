# SPDX-License-Identifier: Apache-2.0
"""Training: the frozen base, what is learnt, gradients, autocast, checkpoints."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from sparse_refine import SparseRefine

from .models import METHOD, SELECT, image_of, train, training_item


def test_training_leaves_the_base_bit_identical(make_cfg):
    model = SparseRefine(make_cfg(SELECT, 0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, [training_item(20, 24, 1), training_item(17, 30, 2)], steps=3)
    after = model.state_dict()
    base = [name for name in before if name.startswith("coarse.base.")]
    assert any("running_mean" in name for name in base)
    assert all(torch.equal(before[name], after[name]) for name in base)
    others = [name for name in before if name not in base and "num_batches" not in name]
    assert {name.split(".")[0] for name in others} == {"extractor", "ensembler"}
    assert all(not torch.equal(before[name], after[name]) for name in others)


def test_the_base_stays_in_eval_mode(make_cfg):
    model = SparseRefine(make_cfg())
    for _ in range(2):
        assert not any(module.training for module in model.coarse.base.modules())
        assert model.train().extractor.training
    model.eval()
    assert not model.extractor.training


def stripes(height=32, width=40):
    """Two classes in stripes of one pixel, which half resolution does not hold."""
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[:, ::2] = 1
    image = torch.where(labels[None] > 0, 200.0, 60.0).expand(3, -1, -1)
    image = (image + torch.randn(3, height, width) * 8).clamp(0, 255).byte()
    return {"image": image, "sem_seg": labels}


def test_training_learns_what_the_base_cannot_see(make_cfg):
    model = SparseRefine(
        make_cfg(
            SELECT, 0.3, METHOD + "EXTRACTOR.CHANNELS", [8, 8], METHOD + "LOSS.DICE_WEIGHT", 0.5
        )
    )
    item = stripes()
    totals = train(model, [item], steps=40, lr=0.02)
    assert totals[-1] < 0.15 * totals[0]
    with torch.no_grad():
        refinement = model.eval()([item])[0]["refinement"]
    y, x = refinement.sites.unbind(1)
    truth = item["sem_seg"][y, x]
    accuracy = {
        kind: (getattr(refinement, kind).long() == truth).float().mean().item()
        for kind in ("coarse", "refined", "fused")
    }
    assert len(truth) > 600
    assert accuracy["coarse"] < 0.7 < 0.95 < min(accuracy["refined"], accuracy["fused"])


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("selected", ["none", "one", "all ignored"])
@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_little_to_learn_from_still_reaches_every_parameter(make_cfg, norm, selected, weight):
    """DistributedDataParallel waits for the gradient of each."""
    options = [METHOD + "EXTRACTOR.NORM", norm, METHOD + "LOSS.DICE_WEIGHT", 1.0]
    options += [METHOD + "LOSS.FUSED_WEIGHT", weight]
    options += [METHOD + "SELECTOR.NAME", "BudgetSelector", METHOD + "SELECTOR.COUNT"]
    model = SparseRefine(make_cfg(*options, {"none": 0, "one": 1, "all ignored": 50}[selected]))
    item = training_item(16, 20)
    if selected == "all ignored":
        item["sem_seg"].fill_(255)
    losses = model.train()([item])
    assert all(loss.isfinite() for loss in losses.values())
    assert (sum(losses.values()).item() > 0) == (selected == "one")
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_autocast_to_bfloat16(make_cfg):
    model = SparseRefine(make_cfg(SELECT, 0.5))
    items = [training_item(24, 32), training_item(15, 20, 1)]
    plain = model.train()(items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(items)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(plain[name].item(), rel=0.05)
        assert loss.item() != plain[name].item()
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    # in training the base is not part of it: thresholds are fine, and the base is what it was
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = [output.logits for output in model.coarse(items)]
    for logits, output in zip(coarse, model.coarse(items)):
        assert torch.equal(logits, output.logits)

    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for output in ("logits", "labels"):
            model.output = output
            results = model([{"image": item["image"]} for item in items])
            agree = (
                results[0]["refinement"].label_map("fused") == model(items)[0]["refinement"].labels
            )
            assert agree.all()
    plain_labels = model(items)[0]["refinement"].labels
    assert (results[0]["labels"] == plain_labels).float().mean() > 0.9


def test_state_dict_round_trip(make_cfg):
    cfg = make_cfg(SELECT, 0.8)
    model = SparseRefine(cfg)
    train(model, [training_item(20, 24)], steps=2)
    other = SparseRefine(cfg)
    inputs = [{"image": image_of(20, 24)}]
    model.eval(), other.eval()
    assert not torch.equal(model(inputs)[0]["sem_seg"], other(inputs)[0]["sem_seg"])
    result = other.load_state_dict(model.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(model(inputs)[0]["sem_seg"], other(inputs)[0]["sem_seg"])


def test_a_checkpoint_of_the_whole_model_stands_alone(make_cfg, tmp_path):
    base = META_ARCH_REGISTRY.get("TinyBase")(make_cfg())
    torch.save({"model": base.state_dict()}, tmp_path / "base.pth")
    model = build_model(make_cfg(METHOD + "BASE.WEIGHTS", str(tmp_path / "base.pth"))).eval()
    assert torch.equal(model.coarse.base.conv.weight, base.conv.weight)
    torch.save({"model": model.state_dict()}, tmp_path / "whole.pth")
    (tmp_path / "base.pth").unlink()

    from sparse_refine.storage.checkpointer import SafeCheckpointer

    alone = build_model(make_cfg(METHOD + "BASE.WEIGHTS", "")).eval()
    SafeCheckpointer(alone).load(str(tmp_path / "whole.pth"))
    inputs = [{"image": image_of(20, 24)}]
    assert torch.equal(alone(inputs)[0]["sem_seg"], model(inputs)[0]["sem_seg"])


def test_backends_share_the_state_dict(make_cfg):
    names = [
        list(SparseRefine(make_cfg(METHOD + "EXTRACTOR.BACKEND", backend)).state_dict())
        for backend in ("auto", "torch")
    ]
    assert names[0] == names[1]
