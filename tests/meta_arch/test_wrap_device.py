# SPDX-License-Identifier: Apache-2.0
"""`SparseRefine.wrap` puts everything where the module is."""

import pytest
import torch
from torch import nn

from sparse_refine import ModuleSegmentor, SparseRefine
from sparse_refine.ensembler import GatedEnsembler
from sparse_refine.extractors import SparseUNetExtractor

DEVICES = [
    "meta",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def parts():
    extractor = SparseUNetExtractor(num_classes=3, channels=(4, 8), backend="torch")
    return {"extractor": extractor, "ensembler": GatedEnsembler(num_classes=3, hidden=4)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("given", [False, True], ids=["the paper's parts", "parts of the CPU"])
@pytest.mark.parametrize("speaks", [False, True], ids=["plain", "a Segmentor"])
def test_where_the_module_is(device, given, speaks):
    module = nn.Conv2d(3, 3, 1).to(device)
    if speaks:
        module = ModuleSegmentor(module).to(device)
    model = SparseRefine.wrap(module, num_classes=3, **(parts() if given else {}))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {tensor.device.type for tensor in tensors.values()} == {device}
    assert model.device.type == device


def test_a_module_without_tensors_is_on_the_cpu():
    class Nothing(nn.Module):
        def forward(self, x):
            return x

    model = SparseRefine.wrap(Nothing(), num_classes=3, **parts()).eval()
    (output,) = model([{"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}])
    assert output["sem_seg"].device.type == "cpu"
