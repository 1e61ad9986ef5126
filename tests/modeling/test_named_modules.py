# SPDX-License-Identifier: Apache-2.0
"""What MODEL.MODULE.PATH may name: classes of nn.Module, and functions that make one."""

import os

import pytest
import torch
from detectron2.config import get_cfg

from sparse_refine import add_sparse_refine_config
from sparse_refine.config import with_options
from sparse_refine.inference import load_model
from sparse_refine.modeling import trust
from sparse_refine.modeling.importing import build_named

from .foreign import CONV, HOW, KEY, Touch

pytestmark = pytest.mark.usefixtures("no_consent")


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
    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "ModuleSegmentor", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    )
    return cfg


@pytest.mark.parametrize("name", ["Net", "build", "cached", "Conv2d"])
def test_what_it_may(file, name):
    arguments = CONV if name == "Conv2d" else {}
    trust.trust([f"{file}:{name}"])
    assert isinstance(build_named(f"{file}:{name}", arguments, KEY), torch.nn.Module)


def test_installed_classes_and_builders_need_no_consent():
    path = "torchvision.models.segmentation:lraspp_mobilenet_v3_large"
    assert build_named(path, {"num_classes": 3, "weights_backbone": None}, KEY).classifier
    assert build_named("torch.nn:Conv2d", CONV, KEY)


def test_code_of_a_repository():
    """Of libraries whose classes would fetch code."""
    with pytest.raises(ValueError, match="trust_remote_code, which runs code.*" + HOW):
        build_named("torch.nn:Conv2d", {**CONV, "trust_remote_code": True}, KEY)


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
