# SPDX-License-Identifier: Apache-2.0
"""A yaml runs no code that nobody consented to."""

import argparse
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from sparse_refine import SparseRefinePredictor
from sparse_refine.commands import check, train
from sparse_refine.config import load_config
from sparse_refine.inference import load_model
from sparse_refine.modeling import trust
from sparse_refine.modeling.importing import build_named

from .foreign import CONV, HOW, KEY, Touch, dense

pytestmark = pytest.mark.usefixtures("no_consent")


@pytest.mark.parametrize("code", ["os:system", "posix:system", "subprocess:run", "shutil:rmtree"])
def test_the_standard_library_never_runs(yaml_of, canary, code):
    path = yaml_of(dense(code, ARGS={"command": f"touch {canary}"}))
    for trust_code in (False, True):
        with pytest.raises(ValueError, match=f"{KEY} names '{code}'.*standard library"):
            SparseRefinePredictor(path, trust_code=trust_code)
    assert not canary.exists()


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
        assert "FOREIGN" in load_config(path, ["PROJECTS", f"['{code}']"]).MODEL or ":" not in name
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


def test_editable_packages_are_installed(file, canary, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(file.parent))
    info = tmp_path / "site" / "foreign-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    monkeypatch.setattr(trust, "_site_folders", lambda: [str(info.parent)])
    for editable in (False, True):
        origin = {"url": file.parent.as_uri(), "dir_info": {"editable": editable}}
        (info / "direct_url.json").write_text(json.dumps(origin))
        if editable:
            assert build_named("foreign:Net", {}, KEY) and canary.exists()
        else:
            with pytest.raises(ValueError, match=HOW):
                build_named("foreign:Net", {}, KEY)
    sys.modules.pop("foreign", None)


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


@pytest.mark.slow
@pytest.mark.parametrize("consent", ["none", "flag", "variable"])
def test_spawned_processes(yaml_of, file, canary, monkeypatch, capfd, consent):
    """As Detectron2's `launch` starts them: the flag comes with the arguments, the variable with
    the environment."""
    path = yaml_of(dense(f"{file}:Net"))
    if consent == "variable":
        monkeypatch.setenv(trust.VARIABLE, "1")
    args = argparse.Namespace(
        config_file=path,
        opts=["OUTPUT_DIR", str(canary.parent)],
        trust_code=consent == "flag",
        eval_only=True,
        resume=False,
    )
    process = torch.multiprocessing.get_context("spawn").Process(target=train.main, args=(args,))
    process.start()
    process.join()
    assert canary.exists() == (consent != "none")
    refused = "foreign.py:Net', code that would run" in capfd.readouterr().err
    assert refused == (consent == "none")


@pytest.mark.parametrize("consent", ["none", "pair", "argument", "variable"])
def test_a_yaml_alone_cannot_allow_pickles(yaml_of, canary, monkeypatch, consent):
    weights = canary.parent / "weights.pkl"
    weights.write_bytes(
        pickle.dumps({"model": {"other": np.zeros(2)}, "canary": Touch(str(canary))})
    )
    node = {"PATH": "torch.nn:Conv2d", "ARGS": CONV}
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
    with pytest.raises(ValueError):  # read, and found to hold no weights of the model
        SparseRefinePredictor(path, opts=opts, trust_code=consent == "argument")
    assert canary.exists()


def test_python_objects_in_a_yaml(tmp_path, canary):
    path = tmp_path / "c.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        load_config(str(path), trust_code=True)
    assert not canary.exists()


@pytest.mark.slow
def test_from_a_folder_with_a_strangers_package(file, canary, yaml_of):
    """`python -m` puts the working directory first on the path."""
    path = yaml_of(dense("foreign:Net"))
    command = [sys.executable, "-m", "sparse_refine", "evaluate", "--config-file", path]
    ended = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    assert ended.returncode and "'foreign:Net', code that would run" in ended.stderr
    assert not canary.exists()
