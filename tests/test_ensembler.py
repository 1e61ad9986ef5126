# SPDX-License-Identifier: Apache-2.0
"""The gate with set weights against numbers worked out by hand; the more certain of two."""

import math

import pytest
import torch

from sparse_refine.ensembler import EntropyEnsembler, GatedEnsembler, RefinedEnsembler

LN3 = math.log(3)


def gate_of_two():
    """K = 2, two hidden units. The input is x = [p1a, p1b, e1, p2a, p2b, e2]."""
    module = GatedEnsembler(num_classes=2, hidden=2)
    first, second = module.gate[0], module.gate[2]
    with torch.no_grad():
        # hidden: relu(e2 - e1), relu(p2a - p1a)
        first.weight.copy_(torch.tensor([[0.0, 0, -1, 0, 0, 1], [-1, 0, 0, 1, 0, 0]]))
        first.bias.zero_()
        second.weight.copy_(torch.tensor([[10.0, 0], [0, 4]]))
        second.bias.copy_(torch.tensor([0.5, 0]))
        # head: relu(2 y1 - y2 + 0.1), relu(-y1); then (z1 + 0.2, 3 z2 - z1 + 0.3)
        module.head[0].weight.copy_(torch.tensor([[2.0, -1], [-1, 0]]))
        module.head[0].bias.copy_(torch.tensor([0.1, 0]))
        module.head[2].weight.copy_(torch.tensor([[1.0, 0], [-1, 3]]))
        module.head[2].bias.copy_(torch.tensor([0.2, 0.3]))
    return module


def test_gate_by_hand():
    coarse = torch.tensor([[LN3, 0.0]])  # p1 = (3/4, 1/4), e1 = 0.562335
    refined = torch.tensor([[0.0, 0.0]])  # p2 = (1/2, 1/2), e2 = 0.693147
    # hidden: 0.130812 and relu(-1/4) = 0; gate: 10 * 0.130812 + 0.5 = 1.808120 and 0
    # w1 = 1 / (1 + e^-1.808120) = 0.859135; y = (0.859135 ln 3, 0) = (0.943856, 0)
    # z = (2 * 0.943856 + 0.1, 0) = (1.987712, 0)
    fused = gate_of_two()(coarse, refined)
    assert fused.tolist() == [pytest.approx([2.187712, -1.687712], abs=2e-5)]


def test_gate_by_hand_the_other_way_round():
    coarse = torch.tensor([[0.0, 0.0]])
    refined = torch.tensor([[LN3, 0.0]])
    # hidden: relu(-0.130812) = 0 and 1/4; gate: 0.5 and 4 / 4 = 1
    # w1 = 1 / (1 + e^0.5) = 0.377541, w2 = 0.622459; y = (0.622459 ln 3, 0) = (0.683841, 0)
    # z = (1.467682, 0)
    fused = gate_of_two()(coarse, refined)
    assert fused.tolist() == [pytest.approx([1.667682, -1.167682], abs=2e-5)]


def test_gate_weighs_logits_not_probabilities():
    """Equal predictions come out as head(prediction), whatever the gate says."""
    module = GatedEnsembler(num_classes=4)
    logits = torch.randn(7, 4) * 5
    assert torch.allclose(module(logits, logits), module.head(logits), atol=1e-5)


def test_gate_looks_at_each_pixel_by_itself():
    """Also where there are more of them than it takes at once."""
    module = gate_of_two()
    coarse, refined = torch.randn(40001, 2), torch.randn(40001, 2)
    fused = module(coarse, refined)
    assert fused.shape == (40001, 2)
    parts = [module(c, r) for c, r in zip(coarse.split(999), refined.split(999))]
    assert torch.allclose(fused, torch.cat(parts), atol=1e-6)


def test_gate_is_the_same_with_gradients_and_without():
    module = GatedEnsembler(num_classes=5)
    coarse, refined = torch.randn(999, 5) * 4, torch.randn(999, 5)
    with torch.no_grad():
        alone = module(coarse, refined)
    assert torch.allclose(module(coarse, refined), alone, atol=1e-5)


def test_gate_has_the_sizes_of_the_paper():
    # 19 classes, 64 wide: 40 * 64 + 64 + 64 * 2 + 2 and 19 * 64 + 64 + 64 * 19 + 19
    module = GatedEnsembler(num_classes=19)
    assert sum(p.numel() for p in module.gate.parameters()) == 2754
    assert sum(p.numel() for p in module.head.parameters()) == 2515


def test_the_more_certain_of_two():
    sure, unsure, even = [5.0, 0.0, 0.0], [1.0, 0.0, 0.5], [2.0, 2.0, 2.0]
    coarse = torch.tensor([sure, unsure, even, unsure])
    refined = torch.tensor([unsure, sure, unsure, even])
    fused = EntropyEnsembler()(coarse, refined)
    assert fused.tolist() == [sure, sure, unsure, unsure]
    assert not list(EntropyEnsembler().parameters())


def test_between_equally_certain_ones_the_coarse_stands():
    coarse = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    refined = torch.tensor([[0.0, 3.0], [4.0, 4.0], [3.0, 0.0]])
    assert torch.equal(EntropyEnsembler()(coarse, refined), coarse)


@pytest.mark.parametrize("module", [GatedEnsembler(num_classes=3), EntropyEnsembler()])
def test_no_sites(module):
    assert module(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)


def test_the_refined_one_alone():
    coarse, refined = torch.randn(5, 3), torch.randn(5, 3)
    assert torch.equal(RefinedEnsembler()(coarse, refined), refined)
