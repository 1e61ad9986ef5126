# SPDX-License-Identifier: Apache-2.0
"""From a config to a model: devices, and the size of the output."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from sparse_refine import SparseRefinePredictor, Trainer
from sparse_refine.modeling.building import build_model

DENSE = ["MODEL.META_ARCHITECTURE", "TinyBase"]


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:93"])
def test_a_device_that_is_not_there(make_cfg, device):
    with pytest.raises(ValueError, match=rf"MODEL\.DEVICE is '{device}'.*'cpu'"):
        build_model(make_cfg(*DENSE, "MODEL.DEVICE", device))


def test_devices(make_cfg):
    for device in ("cpu", "cpu:0", "meta"):
        model = build_model(make_cfg(*DENSE, "MODEL.DEVICE", device))
        assert next(model.parameters()).device.type == device.partition(":")[0]


@pytest.fixture(params=["logits", "labels"])
def outputs(request, make_cfg):
    """outputs(**height and width) -> the size of what a SparseRefine returns."""
    model = build_model(make_cfg("MODEL.SPARSE_REFINE.OUTPUT", request.param)).eval()
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)

    def size(**given):
        (output,) = model([{"image": image, **given}])
        return tuple(output["sem_seg" if request.param == "logits" else "labels"].shape[-2:])

    return size


@pytest.mark.parametrize("value", ["40", None, 40.0, 0, -4, True, torch.tensor([4, 5]), [40]])
@pytest.mark.parametrize("key", ["height", "width"])
def test_what_is_no_size(outputs, key, value):
    with pytest.raises(ValueError, match=rf"input 0, '{key}' is .*whole number of pixels above 0"):
        outputs(**{"height": 10, "width": 15, key: value})


def test_sizes(outputs):
    assert outputs() == (20, 30)
    assert outputs(height=40) == (40, 30)
    for height, width in ((40, 7), (np.int64(40), np.uint8(7)), (torch.tensor(40), 7)):
        assert outputs(height=height, width=width) == (40, 7)


@pytest.mark.parametrize("key, name", [("BACKBONE", "resnet50"), ("SEM_SEG_HEAD", "FPN")])
def test_parts_that_are_not_registered(make_cfg, key, name):
    """fvcore says the registry, not the key."""
    cfg = make_cfg("MODEL.META_ARCHITECTURE", "SemanticSegmentor", f"MODEL.{key}.NAME", name)
    with pytest.raises(ValueError, match=rf"MODEL\.{key}\.NAME is '{name}', .* Known: .*, "):
        build_model(cfg)


@pytest.mark.parametrize(
    "use", [build_model, Trainer, SparseRefinePredictor, lambda cfg: Trainer.test(cfg, None)]
)
def test_a_config_without_this_projects_keys(use):
    """As Detectron2's pages begin: get_cfg(), merge_from_file(...), Trainer(cfg)."""
    with pytest.raises(ValueError, match=r"call add_sparse_refine_config\(cfg\) after get_cfg\(\)"):
        use(get_cfg())
