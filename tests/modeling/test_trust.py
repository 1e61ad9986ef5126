# SPDX-License-Identifier: Apache-2.0
"""A yaml runs no code that nobody consented to. The canary is a file that foreign code would make."""

import os
import pickle
import subprocess
import sys
import types

import pytest
import torch
import yaml

from sparse_refine import SparseRefinePredictor
from sparse_refine.base import build_base
from sparse_refine.commands import check, train
from sparse_refine.config import load_config, with_options
from sparse_refine.inference import load_model
from sparse_refine.modeling import trust
from sparse_refine.modeling.importing import build_named

KEY = "MODEL.MODULE.PATH"
CODE = """
import functools
import subprocess
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn
from torch.nn import Conv2d

Path({canary!r}).touch()


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1)

    def forward(self, images):
        return self.layer(images)


def build(classes=3):
    return Net(classes)


cached = functools.lru_cache(build)
partly = functools.partial(Net, 3)
made = Net()
run = subprocess.run


def number():
    return 3


def add_config(cfg):
    cfg.MODEL.FOREIGN = CfgNode({{"WIDTH": 3}})
"""
HOW = "--trust-code.*trust_code=True.*SPARSE_REFINE_TRUST_CODE=1"


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """No consent from outside, and none that stays."""
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.setattr(trust, "_trusted", set())
    yield
    for key in [key for key in sys.modules if key.startswith("sparse_refine_user_")]:
        del sys.modules[key]


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def file(tmp_path, canary):
    """A file of a stranger: `canary` is there when it has run."""
    path = tmp_path / "foreign.py"
    path.write_text(CODE.format(canary=str(canary)))
    return path


@pytest.fixture
def yaml_of(tmp_path):
    """write(content) -> path of a yaml."""

    def write(content):
        path = tmp_path / "foreign.yaml"
        path.write_text(yaml.safe_dump({"VERSION": 2, **content}))
        return str(path)

    return write


def dense(code, **node):
    return {
        "MODEL": {
            "META_ARCHITECTURE": "ModuleSegmentor",
            "DEVICE": "cpu",
            "MODULE": {"PATH": code, "PRETRAINED": True, **node},
            "SEM_SEG_HEAD": {"NUM_CLASSES": 3},
        }
    }


@pytest.mark.parametrize("code", ["os:system", "posix:system", "subprocess:run", "shutil:rmtree"])
def test_the_standard_library_never_runs(yaml_of, canary, code):
    path = yaml_of(dense(code, ARGS={"command": f"touch {canary}"}))
    for trust_code in (False, True):
        with pytest.raises(ValueError, match=f"{KEY} names '{code}'.*standard library"):
            SparseRefinePredictor(path, trust_code=trust_code)
    assert not canary.exists()


@pytest.mark.parametrize(
    "code, message",
    [
        ("builtins:exec", "standard library"),
        ("torch.hub:load", "does not say that it returns an nn.Module.*" + HOW),
        ("torch:load", "does not say that it returns"),
        ("torch.nn.functional:relu", "does not say that it returns"),
        ("torch.optim:SGD", "is a class, SGD: .* takes a subclass of nn.Module"),
        ("torch.nn.modules.conv:Parameter", "is a class, Parameter"),
        ("torch:float32", "is a dtype: "),
        ("torch.nn:modules", "is a module: "),
        ("torch.nn.modules.conv:Union", KEY),
        ("detectron2.checkpoint.detection_checkpoint:urlparse", "comes from 'urllib.parse'"),
        (".nn:Conv2d", "'package.module:name' or 'path/to/file.py:name'"),
    ],
)
def test_what_makes_no_module_is_not_called(code, message):
    with pytest.raises(ValueError, match=message):
        build_named(code, {}, KEY)


@pytest.mark.parametrize("name, message", [
    ("partly", "is a partial: "), ("made", "is a Net: "), ("add_config.__doc__", "is a NoneType"),
    ("run", "comes from 'subprocess': .* takes a subclass of nn.Module, or a function that"),
    ("number", "returned int: an nn.Module is needed"),
])  # fmt: skip
def test_what_a_trusted_file_may_not_give(file, name, message):
    with pytest.raises(ValueError, match=message):
        load_model(with_options(config_of_defaults(), [KEY, f"{file}:{name}"]))


def config_of_defaults():
    from detectron2.config import get_cfg

    from sparse_refine import add_sparse_refine_config

    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "ModuleSegmentor", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    )
    return cfg


@pytest.mark.parametrize("name", ["Net", "build", "cached", "Conv2d"])
def test_what_it_may(file, name):
    arguments = {"in_channels": 3, "out_channels": 3, "kernel_size": 1} if name == "Conv2d" else {}
    trust.trust([f"{file}:{name}"])
    assert isinstance(build_named(f"{file}:{name}", arguments, KEY), torch.nn.Module)


def test_installed_classes_and_builders_need_no_consent():
    path = "torchvision.models.segmentation:lraspp_mobilenet_v3_large"
    assert build_named(path, {"num_classes": 3, "weights_backbone": None}, KEY).classifier
    assert build_named("torch.nn:Conv2d", dict(in_channels=3, out_channels=3, kernel_size=1), KEY)


@pytest.mark.parametrize("consent", ["none", "argument", "pair", "variable"])
def test_consent_to_a_file(yaml_of, file, canary, monkeypatch, consent):
    path, opts = yaml_of(dense(f"{file}:Net")), []
    if consent == "pair":
        opts = [KEY, f"{file}:Net"]
    elif consent == "variable":
        monkeypatch.setenv(trust.VARIABLE, "1")
    if consent == "none":
        with pytest.raises(ValueError, match=rf"{KEY} of {path} names '{file}:Net'.*{HOW}"):
            SparseRefinePredictor(path)
        for value in ("", "0", "no"):
            monkeypatch.setenv(trust.VARIABLE, value)
            with pytest.raises(ValueError, match="consent with"):
                SparseRefinePredictor(load_config(path))
        assert not canary.exists()
        return
    predictor = SparseRefinePredictor(path, opts=opts, trust_code=consent == "argument")
    assert canary.exists() and type(predictor.model.network).__name__ == "Net"


def test_consent_to_one_file_is_none_to_another(yaml_of, file, canary, tmp_path):
    other = tmp_path / "other.py"
    other.write_text("from torch.nn import Identity as Net")
    load_config(yaml_of(dense(f"{other}:Net")), trust_code=True)
    with pytest.raises(ValueError, match=HOW):
        load_model(load_config(yaml_of(dense(f"{file}:Net"))))
    assert not canary.exists()
    load_model(load_config(yaml_of(dense(f"{file}:Net"))), trust_code=True)


@pytest.mark.parametrize("name", ["foreign.py:add_config", "foreign:add_config", "foreign"])
def test_projects(yaml_of, file, canary, monkeypatch, name):
    """A package that merely lies where the program runs is as foreign as a file."""
    monkeypatch.chdir(file.parent)
    monkeypatch.syspath_prepend(str(file.parent))
    code = name.replace("foreign.py", str(file))
    path = yaml_of({"PROJECTS": [code]})
    with pytest.raises(ValueError, match=rf"PROJECTS of {path} names '{code}'.*{HOW}"):
        load_config(path)
    with pytest.raises(ValueError, match=HOW):  # a dense model's key is no way around it
        build_named("foreign:Net", {}, KEY)
    assert not canary.exists() and "foreign" not in sys.modules
    try:
        cfg = load_config(path, trust_code=True)
        assert canary.exists() and ("FOREIGN" in cfg.MODEL) == (":" in name)
        trust._trusted.clear()
        assert load_config(path, ["PROJECTS", f"['{code}']"]).PROJECTS == [code]
    finally:
        sys.modules.pop("foreign", None)


def test_known_projects_need_no_consent_where_they_are_installed(yaml_of, canary, monkeypatch):
    code = "detectron2.projects.point_rend:add_pointrend_config"
    assert "POINT_HEAD" in load_config(yaml_of({"PROJECTS": [code]})).MODEL
    folder = canary.parent / "there"
    (folder / "pem").mkdir(parents=True)
    (folder / "pem" / "__init__.py").write_text(f"open({str(canary)!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "pem", raising=False)
    path = yaml_of({"PROJECTS": ["pem"]})
    with pytest.raises(ValueError, match="names 'pem'"):  # a folder that is called so
        load_config(path)
    assert not canary.exists()
    monkeypatch.setenv("PYTHONPATH", str(folder))  # a checkout that a person put there
    load_config(path)
    assert canary.exists()
    sys.modules.pop("pem", None)
    with pytest.raises(ValueError, match="PROJECTS names 'os:system'.*standard library"):
        load_config(yaml_of({"PROJECTS": ["os:system"]}), trust_code=True)


def test_installed_packages_that_are_no_known_projects(yaml_of):
    with pytest.raises(ValueError, match="PROJECTS of .* names 'torchvision.models:get_model'"):
        load_config(yaml_of({"PROJECTS": ["torchvision.models:get_model"]}))


def test_the_flag_of_the_programs(yaml_of, file, canary, capsys):
    path = yaml_of({"PROJECTS": [f"{file}:add_config"], "DATASETS": {"TRAIN": [], "TEST": []}})
    with pytest.raises(SystemExit):
        check.main(["--config-file", path])
    said = capsys.readouterr().err
    assert f"PROJECTS of {path} names '{file}:add_config'" in said and "--trust-code" in said
    assert not canary.exists()
    check.main(["--config-file", path, "--trust-code"])
    assert canary.exists()


def _in_another_process(path, trust_code, opts):
    args = types.SimpleNamespace(config_file=path, opts=opts, trust_code=trust_code)
    build_base_of(train.load_config(args.config_file, args.opts, trust_code=args.trust_code))


def build_base_of(cfg):
    return build_base(cfg) if cfg.MODEL.META_ARCHITECTURE == "SparseRefine" else load_model(cfg)


@pytest.mark.parametrize("consent", ["none", "flag", "variable"])
def test_spawned_processes(yaml_of, file, canary, monkeypatch, consent):
    """As Detectron2's `launch` starts them: the flag comes with the arguments, the variable with
    the environment."""
    path = yaml_of(dense(f"{file}:Net"))
    if consent == "variable":
        monkeypatch.setenv(trust.VARIABLE, "1")
    context = torch.multiprocessing.start_processes
    if consent == "none":
        with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="--trust-code"):
            context(_spawned, args=(path, False), nprocs=1, start_method="spawn")
        assert not canary.exists()
    else:
        context(_spawned, args=(path, consent == "flag"), nprocs=1, start_method="spawn")
        assert canary.exists()


def _spawned(rank, path, trust_code):
    _in_another_process(path, trust_code, [])


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("consent", ["none", "pair", "argument", "variable"])
def test_a_yaml_alone_cannot_allow_pickles(yaml_of, canary, monkeypatch, consent):
    weights = canary.parent / "weights.pkl"
    weights.write_bytes(pickle.dumps({"model": {}, "canary": Touch(str(canary))}))
    node = {"PATH": "torch.nn:Conv2d", "ARGS": dict(in_channels=3, out_channels=3, kernel_size=1)}
    model = {"ALLOW_PICKLE": True, "WEIGHTS": str(weights), "MODULE": node, "DEVICE": "cpu"}
    path = yaml_of({"MODEL": {"META_ARCHITECTURE": "ModuleSegmentor", **model}})
    opts = ["MODEL.ALLOW_PICKLE", "True"] if consent == "pair" else []
    if consent == "none":
        with pytest.raises(ValueError, match=f"{path} sets MODEL.ALLOW_PICKLE True.*{HOW}"):
            SparseRefinePredictor(path)
        assert load_config(path, ["MODEL.ALLOW_PICKLE", "False"]).MODEL.ALLOW_PICKLE is False
        assert not canary.exists()
        return
    if consent == "variable":
        monkeypatch.setenv(trust.VARIABLE, "1")
    with pytest.raises(ValueError):  # read, and found to hold no weights
        SparseRefinePredictor(path, opts=opts, trust_code=consent == "argument")
    assert canary.exists()


def test_python_objects_in_a_yaml(tmp_path, canary):
    path = tmp_path / "c.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        load_config(str(path), trust_code=True)
    assert not canary.exists()


def test_pickles_that_arguments_name(tmp_path, canary):
    """A builder that reads a file which the yaml's arguments name reads tensors alone."""
    weights = tmp_path / "weights.pth"
    torch.save({"canary": Touch(str(canary))}, weights)
    with trust.tensors_only(), pytest.raises(Exception, match="(?i)weights.only"):
        torch.load(weights, weights_only=False)
    assert not canary.exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    with trust.tensors_only(False):
        torch.load(weights, weights_only=False)
    assert canary.exists()


def test_from_a_folder_with_a_strangers_package(file, canary, yaml_of):
    """`python -m` puts the working directory first on the path."""
    path = yaml_of(dense("foreign:Net"))
    command = [sys.executable, "-m", "sparse_refine", "evaluate", "--config-file", path]
    ended = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    assert ended.returncode and "'foreign:Net', code that would run" in ended.stderr
    assert not canary.exists()
