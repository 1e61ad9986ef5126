# SPDX-License-Identifier: Apache-2.0
"""train_net.py on tiny data: train, evaluate, resume, be killed, run in two processes.

For what needs a process of its own the file runs itself as a script.
"""

import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser, launch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from sparse_refine import SparseRefine
from sparse_refine.data import build_train_loader
from sparse_refine.evaluation.checks import check_datasets
from sparse_refine.storage.weights import load_weights, save_weights
from sparse_refine.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
METHOD = "MODEL.SPARSE_REFINE."
SCALAR = ["fraction", "accuracy_coarse", "accuracy_refined", "accuracy_fused"]


def base_weights(cfg, folder, seed=3):
    """A file of weights for the frozen base, always the same ones."""
    if cfg.MODEL.META_ARCHITECTURE != "SparseRefine":
        return ""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = META_ARCH_REGISTRY.get(cfg.MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE)(cfg)
    path = str(folder / f"given_base_{comm.get_rank()}.safetensors")
    save_weights(base.state_dict(), path)
    return path


def train_net(cfg, *flags):
    """main() of train_net.py with this config, from a yaml file as on the command line."""
    spec = importlib.util.spec_from_file_location(
        "train_net", ROOT / "projects" / "SparseRefine" / "train_net.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    if not cfg.MODEL.WEIGHTS and not cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS:
        cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS = base_weights(cfg, folder)
    file = folder / f"given_{comm.get_rank()}.yaml"
    file.write_text(cfg.dump())
    return module.main(default_argument_parser().parse_args(["--config-file", str(file), *flags]))


@pytest.fixture
def run(tiny_dataset, make_cfg, tmp_path, quiet_logs, monkeypatch):
    """run(folder, *options, flags=()) -> what main() returned; the output is in tmp_path/folder."""
    name = tiny_dataset()
    monkeypatch.setattr("detectron2.engine.defaults.collect_env_info", str)  # asks compilers

    def run(folder, *options, flags=()):
        cfg = make_cfg(
            "DATASETS.TRAIN",
            (name,),
            "DATASETS.TEST",
            (name,),
            "OUTPUT_DIR",
            str(tmp_path / folder),
        )
        cfg.merge_from_list(list(options))
        return train_net(cfg, *flags)

    return run


def final(folder):
    return load_weights(str(Path(folder, "model_final.pth")))["model"]


def assert_same(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def stop_at(monkeypatch, iteration):
    """A power cut before this iteration."""

    def run_step(self):
        if self.iter == iteration:
            raise KeyboardInterrupt
        original(self)

    original = Trainer.run_step
    monkeypatch.setattr(Trainer, "run_step", run_step)


def logged_in(folder):
    """The latest value of everything in metrics.json."""
    latest = {}
    for line in Path(folder, "metrics.json").read_text().splitlines():
        latest.update(json.loads(line))
    return latest


# ---- the main road -------------------------------------------------------------------------------


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


def test_mixed_precision_on_the_cpu(run, tmp_path):
    run("a", "SOLVER.MAX_ITER", 2)
    run("b", "SOLVER.MAX_ITER", 2, "SOLVER.AMP.ENABLED", True)
    full, mixed = final(tmp_path / "a"), final(tmp_path / "b")
    assert all(mixed[name].dtype == tensor.dtype for name, tensor in full.items())
    assert all(tensor.isfinite().all() for tensor in mixed.values())
    assert any(not torch.equal(mixed[name], tensor) for name, tensor in full.items())
    losses = [logged_in(tmp_path / folder)["total_loss"] for folder in "ab"]
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[0] != losses[1]


def test_random_weights_are_refused(run, tmp_path):
    """Where nobody gave the frozen base weights, and where nothing is there to evaluate."""
    run("dense", "MODEL.META_ARCHITECTURE", "TinyBase", "SOLVER.MAX_ITER", 1)
    dense = str(tmp_path / "dense" / "model_final.pth")
    with pytest.raises(ValueError, match=r"coarse\.base\..* is missing.*BASE\.WEIGHTS"):
        run("a", "MODEL.WEIGHTS", dense)
    run("b", "SOLVER.MAX_ITER", 1)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is ''"):
        run("b", METHOD + "BASE.WEIGHTS", dense, flags=["--eval-only"])


def test_a_base_without_weights_is_refused(tiny_dataset, make_cfg, tmp_path):
    name = tiny_dataset()
    cfg = make_cfg("DATASETS.TRAIN", (name,), "OUTPUT_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"BASE\.WEIGHTS and MODEL\.WEIGHTS are both ''"):
        Trainer(cfg).resume_or_load(resume=True)


def test_training_without_a_test_set(run, tmp_path):
    run("a", "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ())
    assert (tmp_path / "a" / "model_final.pth").exists()


# ---- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [3, 4], ids=["between checkpoints", "at a checkpoint"])
@pytest.mark.parametrize("kind", ["plain", "one worker", "cached base", "SGD and AMP"])
def test_a_resumed_run_is_an_unbroken_one(run, tmp_path, monkeypatch, kind, stop):
    options = {
        "plain": ["INPUT.COLOR_AUG_SSD", True],
        "one worker": ["DATALOADER.NUM_WORKERS", 1],
        "cached base": ["INPUT.RESIZE_RANGE", [1.0, 1.0], METHOD + "COARSE_CACHE"],
        "SGD and AMP": ["SOLVER.OPTIMIZER", "SGD", "SOLVER.AMP.ENABLED", True],
    }[kind]

    def of(folder):
        return [*options, str(tmp_path / folder / "cache")] if kind == "cached base" else options

    run("unbroken", *of("unbroken"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, stop)
        run("broken", *of("broken"))
    assert not (tmp_path / "broken" / "model_final.pth").exists()
    run("broken", *of("broken"), flags=["--resume"])
    assert_same(final(tmp_path / "unbroken"), final(tmp_path / "broken"))


def test_resuming_a_finished_run_changes_nothing(run, tmp_path):
    run("a", "SOLVER.MAX_ITER", 2)
    before = final(tmp_path / "a")
    run("a", "SOLVER.MAX_ITER", 2, flags=["--resume"])
    assert_same(before, final(tmp_path / "a"))


def test_resume_without_a_checkpoint_starts_from_the_weights(run, tmp_path):
    run("a", "SOLVER.MAX_ITER", 2)
    options = ["MODEL.WEIGHTS", str(tmp_path / "a" / "model_final.pth"), "SOLVER.MAX_ITER", 2]
    run("b", *options)
    run("c", *options, flags=["--resume"])
    assert_same(final(tmp_path / "b"), final(tmp_path / "c"))
    assert not torch.equal(
        final(tmp_path / "a")["extractor.classifier.bias"],
        final(tmp_path / "c")["extractor.classifier.bias"],
    )


def test_the_best_checkpoint_survives_a_resume(run, tmp_path, monkeypatch):
    """The evaluation that found it came after the checkpoint that the run resumes from."""
    values = iter([50.0, 40.0, 45.0])

    def evaluate(cls, cfg, model, resume=False):
        return {"sparse_refine": {"mIoU": next(values)}}

    monkeypatch.setattr(Trainer, "test", classmethod(evaluate))
    options = ["TEST.EVAL_PERIOD", 2]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        run("a", *options)
    best = load_weights(str(tmp_path / "a" / "model_best.pth"))["model"]
    assert_same(best, load_weights(str(tmp_path / "a" / "model_0000001.pth"))["model"])
    assert (tmp_path / "a" / "last_checkpoint").read_text() == "model_0000001.pth"
    run("a", *options, flags=["--resume"])
    assert next(values, None) is None
    assert_same(best, load_weights(str(tmp_path / "a" / "model_best.pth"))["model"])
    assert (tmp_path / "a" / "last_checkpoint").read_text() == "model_final.pth"


def test_killed_while_saving(tmp_path):
    """SIGKILL halfway through writing the second checkpoint; then --resume.

    Each in a process of its own: one that has MinkowskiEngine loaded rounds some sums differently.
    """
    done = as_script("killed", tmp_path / "b")
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "b" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "b" / "model_0000003.pth").exists()
    for folder in ("a", "b"):
        assert as_script("resume", tmp_path / folder).returncode == 0
    assert_same(final(tmp_path / "a"), final(tmp_path / "b"))


def test_an_interrupted_evaluation_goes_on(run, tmp_path, monkeypatch):
    run("a", "SOLVER.MAX_ITER", 1)
    options = ["MODEL.WEIGHTS", str(tmp_path / "a" / "model_final.pth")]
    expected = run("a", *options, flags=["--eval-only"])["sparse_refine"]
    forward, seen = SparseRefine.forward, []

    def counted(self, inputs):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(inputs[0]["file_name"])
        return forward(self, inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SparseRefine, "forward", counted)
        run("b", *options, flags=["--eval-only"])
    first = list(seen)
    for rest in (2, 0):  # and once more with nothing left to do
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(SparseRefine, "forward", counted)
            results = run("b", *options, flags=["--eval-only", "--resume"])["sparse_refine"]
        assert len(seen) == rest and not set(seen) & set(first)
        for name in ("mIoU", "coarse/BoundaryIoU", "selected_fraction"):
            assert results[name] == pytest.approx(expected[name])
    with pytest.raises(ValueError, match="other weights"):
        run("b", *options, METHOD + "SELECTOR.THRESHOLD", 0.5, flags=["--eval-only", "--resume"])


# ---- cached coarse logits ------------------------------------------------------------------------


def test_epochs_after_the_first_skip_the_base(run, make_cfg, tmp_path, monkeypatch):
    tiny_base = META_ARCH_REGISTRY.get("TinyBase")
    forward, images = tiny_base.forward, []

    def counted(self, inputs):
        images.extend(inputs)
        return forward(self, inputs)

    monkeypatch.setattr(tiny_base, "forward", counted)
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_, **__: {}))
    options = ["INPUT.RESIZE_RANGE", [1.0, 1.0], METHOD + "COARSE_CACHE", str(tmp_path / "cache")]
    options += ["SOLVER.IMS_PER_BATCH", 5, "SOLVER.MAX_ITER", 4]
    run("a", *options)
    assert len(images) == 5  # four epochs of five images
    run("b", *options)
    assert len(images) == 5
    other = base_weights(make_cfg(), tmp_path, seed=4)
    run("c", *options, METHOD + "BASE.WEIGHTS", other)
    assert len(images) == 10
    with pytest.raises(ValueError, match=r"COARSE_CACHE.*INPUT.RESIZE_RANGE.*\[0.5, 2.0\]"):
        run("d", *options, "INPUT.RESIZE_RANGE", [0.5, 2.0])


def test_cached_logits_are_those_of_the_same_crops(tiny_dataset, make_cfg, tmp_path):
    """Flipped ones included, in the first epoch and after; the cache rounds to half precision."""
    name = tiny_dataset()
    options = ["DATASETS.TRAIN", (name,), "INPUT.RESIZE_RANGE", [1.0, 1.0]]
    options += [METHOD + "SELECTOR.THRESHOLD", 0.0]  # rounding must not change what is selected
    cached = [METHOD + "COARSE_CACHE", str(tmp_path / "cache")]
    runs, flipped = [], []
    for cfg in (make_cfg(*options), make_cfg(*options, *cached)):
        torch.manual_seed(0)
        model = SparseRefine(cfg).train()
        with torch.no_grad():  # a base that sees the same in a mirror
            kernel = model.coarse.base.conv.weight
            kernel[..., (0, 2)] = 0
        losses = []
        for items in itertools.islice(build_train_loader(cfg), 8):
            losses.append(sum(model(items).values()).item())
            flipped += [item["context_flip"] for item in items]
        runs.append(losses)
    assert 3 < sum(flipped) < 13
    assert runs[1] == pytest.approx(runs[0], rel=2e-3)
    assert max(runs[0]) > 1.02 * min(runs[0])  # they would tell


# ---- errors --------------------------------------------------------------------------------------


def test_data_sets_that_do_not_fit(make_cfg, tiny_dataset):
    name = tiny_dataset()
    check_datasets(make_cfg("DATASETS.TRAIN", (name,)))
    with pytest.raises(ValueError, match=rf"{name}.* has 3 classes but .*NUM_CLASSES is 7"):
        check_datasets(make_cfg("DATASETS.TEST", (name,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7))
    with pytest.raises(ValueError, match=rf"{name}.* ignores label 255 but .*IGNORE_VALUE is 0"):
        check_datasets(make_cfg("DATASETS.TRAIN", (name,), "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0))
    with pytest.raises(KeyError, match="'nowhere' is not registered.*synthetic_field_train"):
        check_datasets(make_cfg("DATASETS.TRAIN", ("nowhere",)))


def test_a_test_set_that_cannot_be_evaluated_stops_before_the_training(run, tmp_path, make_cfg):
    name = f"{tmp_path.name}_boxes"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(
        stuff_classes=["soil", "crop", "weed"], ignore_label=255, evaluator_type="coco"
    )
    try:
        with pytest.raises(ValueError, match=rf"{name}.*evaluator_type 'coco'"):
            run("a", "DATASETS.TEST", (name,))
        assert not (tmp_path / "a" / "model_final.pth").exists()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_an_impossible_boundary_stops_before_the_training(run, tmp_path):
    with pytest.raises(ValueError, match="TEST.BOUNDARY_DISTANCE is 0"):
        run("a", "TEST.BOUNDARY_DISTANCE", 0)
    assert not (tmp_path / "a" / "model_final.pth").exists()


def test_weights_that_are_not_there(run, tmp_path):
    for flags in ([], ["--eval-only"]):
        with pytest.raises(FileNotFoundError, match=r"MODEL.WEIGHTS.*none\.pth"):
            run("a", "MODEL.WEIGHTS", str(tmp_path / "none.pth"), flags=flags)


# ---- two processes -------------------------------------------------------------------------------

# SGD: AdamW would blow the last bits of a gradient that is 0 up to a whole step.
TWO = [
    # fmt: off
    "SOLVER.OPTIMIZER",
    "SGD",
    "SOLVER.IMS_PER_BATCH",
    4,
    "SOLVER.MAX_ITER",
    4,
    METHOD + "EXTRACTOR.NORM",
    "SyncBN",
    METHOD + "SELECTOR.THRESHOLD",
    0.7,
    "TEST.EVAL_PERIOD",
    4,
    # fmt: on
]


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(run, tmp_path):
    done = as_script("two", tmp_path / "two")
    assert done.returncode == 0
    run("one", *TWO)
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-5, rtol=1e-5), name

    options = [*TWO, "MODEL.WEIGHTS", str(tmp_path / "two" / "model_final.pth")]
    expected = run("alone", *options, flags=["--eval-only"])
    evaluated = json.loads((tmp_path / "two" / "evaluated.json").read_text())
    for kind in ("sparse_refine", "sem_seg"):
        assert len(expected[kind]) > 5 and evaluated[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            if "seconds" not in name:
                assert evaluated[kind][name] == pytest.approx(value, nan_ok=True), name
    # what the last evaluation of the training said
    logged = logged_in(tmp_path / "two")
    assert logged["sparse_refine/mIoU"] == pytest.approx(
        expected["sparse_refine"]["mIoU"], abs=1e-3
    )
    # one process may have nothing to learn from
    for norm in ("BN", "SyncBN"):
        assert json.loads((tmp_path / "two" / norm / "lonely.json").read_text()) == [True] * 3


def as_script(task, folder):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run([sys.executable, __file__, task, str(folder)], env=environment)


def script_cfg(folder, *options):
    """As in the fixture `run`, for a process without fixtures."""
    name = "of_a_script"
    conftest.register_tiny(name, Path(folder, "data"))
    return conftest.tiny_cfg(
        *("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "OUTPUT_DIR", str(folder)), *options
    )


def train_until_killed(folder):
    whole = torch.save

    def half(data, path):
        whole(data, path)
        if data["trainer"]["iteration"] == 3:
            with open(path, "rb+") as file:
                file.truncate(os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    train_net(script_cfg(folder))


def train_in_processes(folder):
    assert comm.get_world_size() == 2
    if comm.get_rank() == 0:  # the files are there before anybody else looks
        cfg = script_cfg(folder, *TWO)
    comm.synchronize()
    if comm.get_rank() == 1:
        cfg = script_cfg(folder, *TWO)
    train_net(cfg)
    comm.synchronize()
    cfg.MODEL.WEIGHTS = str(Path(folder, "model_final.pth"))
    results = train_net(cfg, "--eval-only")
    if comm.get_rank() == 0:
        Path(folder, "evaluated.json").write_text(json.dumps(results))
    for norm in ("BN", "SyncBN"):
        lonely(cfg, Path(folder, norm), norm)


def lonely(cfg, folder, norm):
    """No pixel is selected in the second process: both finish, with the same parameters."""
    cfg.MODEL.SPARSE_REFINE.EXTRACTOR.NORM = norm
    cfg.MODEL.SPARSE_REFINE.SELECTOR.NAME = "BudgetSelector"
    cfg.MODEL.SPARSE_REFINE.SELECTOR.COUNT = 20 if comm.get_rank() == 0 else 0
    cfg.MODEL.WEIGHTS = ""
    cfg.SOLVER.MAX_ITER = 2
    cfg.TEST.EVAL_PERIOD = 0
    cfg.OUTPUT_DIR = str(folder)
    folder.mkdir(exist_ok=True)
    trainer = Trainer(cfg)
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train()
    after = list(trainer.model.parameters())
    finite = all(math.isfinite(p.sum().item()) for p in after)
    moved = any(not torch.equal(a, b) for a, b in zip(before, after))
    # the evaluation at the end brings running statistics together, too
    same = [
        all(
            torch.equal(a, b) for a, b in zip(*comm.all_gather([t.detach().clone() for t in state]))
        )
        for state in (after, trainer.model.buffers())
    ]
    if comm.get_rank() == 0:
        Path(folder, "lonely.json").write_text(json.dumps([finite and moved, *same]))


if __name__ in ("__main__", "__mp_main__"):
    import conftest

if __name__ == "__main__":
    task, folder = sys.argv[1:]
    if task == "killed":
        train_until_killed(folder)
    elif task == "resume":
        train_net(script_cfg(folder), "--resume")
    else:
        launch(train_in_processes, 2, dist_url="auto", args=(folder,))
