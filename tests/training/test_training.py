# SPDX-License-Identifier: Apache-2.0
"""train_net.py on tiny data: train, evaluate, what is logged, optimizer, precision."""

import pytest
import torch

from sparse_refine import SparseRefine
from sparse_refine.storage.weights import load_weights
from sparse_refine.training.trainer import Trainer

from .runs import METHOD, assert_same, final, logged_in

SCALAR = ["fraction", "accuracy_coarse", "accuracy_refined", "accuracy_fused"]


def test_train_evaluate_and_evaluate_again(run, tmp_path):
    run("a", "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2)
    folder = tmp_path / "a"
    for name in ("model_0000001", "model_0000003", "model_final", "model_best"):
        assert "extractor.unet.stem.weight" in load_weights(str(folder / f"{name}.pth"))["model"]
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert list(folder.glob("events.out.tfevents*")) and (folder / "config.yaml").exists()

    logged = logged_in(folder)
    measured = {"mIoU": logged["sparse_refine/mIoU"], "pACC": logged["sparse_refine/pACC"]}
    assert 0 < measured["mIoU"] < 100
    assert logged["sem_seg/mIoU"] == pytest.approx(measured["mIoU"], abs=1e-3)  # Detectron2's own
    results = run("a", "MODEL.WEIGHTS", str(folder / "model_final.pth"), flags=["--eval-only"])
    for name, value in measured.items():
        assert results["sparse_refine"][name] == pytest.approx(value, abs=1e-4)
    assert 0 < results["sparse_refine"]["selected_fraction"] < 1
    assert results["sparse_refine"]["seconds"] > 0

    labels = run(
        "b",
        *("MODEL.WEIGHTS", str(folder / "model_final.pth"), METHOD + "OUTPUT", "labels"),
        flags=["--eval-only"],
    )
    assert labels["sparse_refine"]["mIoU"] == pytest.approx(measured["mIoU"], abs=1e-4)


def test_log_lines(run, tmp_path):
    """Selected fraction, and accuracy on the selected pixels, where one looks: beside losses."""
    run("a", "SOLVER.MAX_ITER", 3)
    text = (tmp_path / "a" / "log.txt").read_text()
    lines = [line for line in text.splitlines() if "iter: 2 " in line]
    assert len(lines) == 2
    for name in ("total_loss", "loss_refined", "loss_fused", *(f"selected/{s}" for s in SCALAR)):
        assert f"{name}: " in " ".join(lines)
    logged = logged_in(tmp_path / "a")
    for scalar in SCALAR:
        (value,) = (v for key, v in logged.items() if key.endswith(f"selected/{scalar}"))
        assert 0 <= value <= 1
    loss = sum(logged[key] for key in ("loss_refined", "loss_fused"))
    assert logged["total_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_training_learns(run, tmp_path):
    options = ["SOLVER.MAX_ITER", 30, "INPUT.CROP.SIZE", [40, 56], "INPUT.RESIZE_RANGE", [1.0, 1.0]]
    results = []
    for folder, steps in (("a", 1), ("b", 30)):
        run(folder, *options, "SOLVER.MAX_ITER", steps, "SOLVER.BASE_LR", 0.02)
        weights = str(tmp_path / folder / "model_final.pth")
        results.append(run(folder, "MODEL.WEIGHTS", weights, flags=["--eval-only"]))
    before, after = (result["sparse_refine"] for result in results)
    assert after["coarse/mIoU"] == before["coarse/mIoU"]
    assert after["mIoU"] > max(before["mIoU"], after["coarse/mIoU"]) + 15
    assert after["selected/refined/pACC"] > 70


@pytest.mark.slow
def test_a_dense_model_takes_the_same_road(run, tmp_path):
    options = ["MODEL.META_ARCHITECTURE", "TinyBase", "INPUT.SCALE", 0.5, "SOLVER.MAX_ITER", 2]
    run("a", *options, "TEST.EVAL_PERIOD", 1)
    logged = logged_in(tmp_path / "a")
    assert logged["total_loss"] > 0 and 0 <= logged["sparse_refine/mIoU"] <= 100
    weights = str(tmp_path / "a" / "model_final.pth")
    refined = run("b", METHOD + "BASE.WEIGHTS", weights, "SOLVER.MAX_ITER", 2)
    assert refined is None
    base, whole = final(tmp_path / "a"), final(tmp_path / "b")
    assert_same(base, {n[12:]: t for n, t in whole.items() if n.startswith("coarse.base.")})


def test_optimizer_settings(make_cfg):
    cfg = make_cfg("SOLVER.BACKBONE_MULTIPLIER", 0.1, "SOLVER.BASE_LR", 1e-3)
    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, rate in (("backbone", 1e-4), ("head", 1e-3)):
        assert [rates[id(p)] for p in model[name].parameters()] == pytest.approx([rate, rate])
    cfg.SOLVER.OPTIMIZER = "SGD"
    assert isinstance(Trainer.build_optimizer(cfg, model), torch.optim.SGD)
    # the frozen base is none of its business
    refine = SparseRefine(cfg)
    optimizer = Trainer.build_optimizer(cfg, refine)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in refine.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in refine.coarse.parameters()}


@pytest.mark.slow
def test_mixed_precision_on_the_cpu(run, tmp_path):
    run("a", "SOLVER.MAX_ITER", 2)
    run("b", "SOLVER.MAX_ITER", 2, "SOLVER.AMP.ENABLED", True)
    full, mixed = final(tmp_path / "a"), final(tmp_path / "b")
    assert all(mixed[name].dtype == tensor.dtype for name, tensor in full.items())
    assert all(tensor.isfinite().all() for tensor in mixed.values())
    assert any(not torch.equal(mixed[name], tensor) for name, tensor in full.items())
    losses = [logged_in(tmp_path / folder)["total_loss"] for folder in "ab"]
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[0] != losses[1]


def test_training_without_a_test_set(run, tmp_path):
    run("a", "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ())
    assert (tmp_path / "a" / "model_final.pth").exists()
