# SPDX-License-Identifier: Apache-2.0
"""The selectors: masks at full size, crops, thresholds, budgets."""

import math

import pytest
import torch
import torch.nn.functional as F

from sparse_refine.resampling import nearest_index, pixels_under
from sparse_refine.selector import (
    SELECTOR_REGISTRY,
    BudgetSelector,
    EntropySelector,
    MarginBudgetSelector,
    MarginSelector,
    RandomBudgetSelector,
    entropy,
    entropy_map,
    expand_mask,
    keep_entropy,
    margin,
)
from sparse_refine.sites import View, highest

# (low size, full size): integer and odd scales, the same size, and one axis only
SIZES = [
    ((3, 4), (6, 8)),
    ((3, 4), (9, 12)),
    ((4, 5), (4, 5)),
    ((2, 3), (5, 7)),
    ((5, 3), (7, 11)),
    ((1, 1), (3, 2)),
    ((3, 7), (3, 20)),
]


def whole(height, width):
    return View(0, 0, height, width, (height, width))


def logits_of(*distribution):
    """(K,1,1) logits whose softmax is this distribution."""
    return torch.tensor(distribution).log()[:, None, None]


def as_set(sites):
    return set(map(tuple, sites.tolist()))


# ---- repeating a low mask ------------------------------------------------------------------------


def test_nearest_index_by_hand():
    assert nearest_index(5, 2).tolist() == [0, 0, 1, 1, 1]  # floor((i + 0.5) * 2 / 5)
    assert nearest_index(7, 3).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert nearest_index(4, 4).tolist() == [0, 1, 2, 3]
    assert nearest_index(3, 1).tolist() == [0, 0, 0]


def test_mask_at_an_odd_scale_by_hand():
    mask = torch.tensor([[True, False, False], [False, False, True]])
    # rows 0 0 1 1 1, columns 0 0 1 1 1 2 2
    expected = [(y, x) for y in (0, 1) for x in (0, 1)] + [
        (y, x) for y in (2, 3, 4) for x in (5, 6)
    ]
    sites = expand_mask(mask, whole(5, 7))
    assert sites.dtype == torch.int64 and sites.tolist() == [list(site) for site in expected]


@pytest.mark.parametrize("low, full", SIZES)
def test_mask_is_torch_nearest(low, full):
    mask = torch.rand(low) < 0.5
    repeated = F.interpolate(mask[None, None].float(), size=full, mode="nearest-exact")[0, 0]
    assert torch.equal(expand_mask(mask, whole(*full)), repeated.nonzero())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_selecting_low_is_selecting_after_upsampling(scale):
    """The release upsamples logits by nearest neighbour and selects at full size."""
    logits = torch.randn(5, 6, 7) * 3
    large = F.interpolate(logits[None], scale_factor=scale, mode="nearest")[0]
    full = tuple(large.shape[-2:])
    for threshold in (0.05, 0.3, 1.0):
        sites = EntropySelector(threshold=threshold)(logits, whole(*full))
        assert torch.equal(sites, (entropy(large) > threshold).nonzero())
        sites = MarginSelector(threshold=min(threshold, 1))(logits, whole(*full))
        assert torch.equal(sites, (margin(large) < threshold).nonzero())


@pytest.mark.parametrize("low, full", SIZES)
@pytest.mark.parametrize(
    "selector",
    [
        EntropySelector(threshold=0.6),
        MarginSelector(threshold=0.4),
        BudgetSelector(fraction=0.37),
        BudgetSelector(count=11),
        MarginBudgetSelector(fraction=0.37),
        RandomBudgetSelector(fraction=0.37),
    ],
    ids=["entropy", "margin", "fraction", "count", "margins", "random"],
)
def test_a_crop_holds_what_the_whole_image_selects_there(selector, low, full):
    logits = torch.randn(3, *low)
    everywhere = selector(logits, whole(*full))
    for top in range(full[0]):
        for left in range(full[1]):
            view = View(top, left, full[0] - top, min(3, full[1] - left), full)
            sites = selector(logits, view) + torch.tensor([top, left])
            inside = (
                (everywhere[:, 0] >= top)
                & (everywhere[:, 1] >= left)
                & (everywhere[:, 1] < left + view.width)
            )
            assert torch.equal(sites, everywhere[inside])


# ---- thresholds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "threshold, share",
    # share q with -(q ln q + (1 - q) ln (1 - q)) = threshold
    [(0.3, 0.088906), (0.1, 0.0205055), (0.05, 0.00871297), (0.005, 0.000593134)],
    ids=["HRNet-W48", "SegFormer-B5 and SegNeXt-L", "Mask2Former-T", "Mask2Former-L"],
)
def test_thresholds_of_the_release(threshold, share):
    below, above = share * 0.999, share * 1.001
    logits = torch.cat([logits_of(1 - below, below), logits_of(above, 1 - above)], dim=2)
    sites = EntropySelector(threshold=threshold)(logits, whole(2, 4))
    assert sites.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_a_threshold_that_nothing_reaches_says_so(make_cfg, caplog):
    """Three classes: the entropy is at most ln 3 = 1.0986."""

    def build(threshold, name="EntropySelector"):
        caplog.clear()
        cfg = make_cfg("MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD", threshold)
        SELECTOR_REGISTRY.get(name)(cfg)
        return caplog.text

    assert "SELECTOR.THRESHOLD is 1.1 nats" in build(1.1) and "ln 3 = 1.099" in caplog.text
    assert not build(1.09) and not build(1.0, "MarginSelector")


def test_thresholds_are_strict():
    even = torch.zeros(2, 1, 2)
    assert len(EntropySelector(threshold=entropy(even)[0, 0].item())(even, whole(1, 2))) == 0
    assert len(EntropySelector(threshold=0.69)(even, whole(1, 2))) == 2
    assert len(MarginSelector(threshold=0.0)(even, whole(1, 2))) == 0
    assert len(MarginSelector(threshold=0.01)(even, whole(1, 2))) == 2


# ---- budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize("low, full", SIZES)
@pytest.mark.parametrize("kind", ["ties", "some ties", "no ties"])
def test_budget_is_exact(low, full, kind):
    """Every count from none to all: as many sites, in raster order, each set inside the next."""
    logits = torch.randn(3, *low) * 2
    if kind == "ties":
        logits = torch.zeros(3, *low)
    elif kind == "some ties":
        logits = logits.round()
    pixels = full[0] * full[1]
    before = set()
    for count in range(pixels + 1):
        sites = BudgetSelector(count=count)(logits, whole(*full))
        order = sites[:, 0] * full[1] + sites[:, 1]
        assert len(sites) == count and bool((order[1:] > order[:-1]).all())
        assert before <= as_set(sites)
        before = as_set(sites)
    # more than there are
    assert len(BudgetSelector(count=pixels + 1)(logits, whole(*full))) == pixels


@pytest.mark.parametrize(
    "fraction, count", [(0.0, 0), (0.3, 10), (1 / 7, 5), (0.99, 35), (1.0, 35)]
)
def test_budget_as_a_fraction(fraction, count):
    # of 5 x 7 = 35 pixels, rounded: 10.5 goes to the even 10, 34.65 to 35
    sites = BudgetSelector(fraction=fraction)(torch.randn(4, 2, 3), whole(5, 7))
    assert len(sites) == count


def test_budget_takes_the_most_uncertain_first():
    share = torch.tensor([[0.5, 0.9, 0.6], [0.99, 0.7, 0.95]])  # of class 0; 0.5 is most uncertain
    logits = torch.stack([share, 1 - share]).log()
    view = whole(4, 6)
    pixel = {(y, x): share[y // 2, x // 2].item() for y in range(4) for x in range(6)}
    certain = [0.5, 0.6, 0.7, 0.9, 0.95, 0.99]
    for blocks in range(1, 7):
        sites = as_set(BudgetSelector(count=4 * blocks)(logits, view))
        expected = {site for site, p in pixel.items() if p <= certain[blocks - 1] + 1e-6}
        assert sites == expected
    # six: the block of 0.5, and the first two pixels of the block of 0.6
    assert as_set(BudgetSelector(count=6)(logits, view)) == {
        *[(0, 0), (0, 1), (1, 0), (1, 1)],
        *[(0, 4), (0, 5)],
    }


def test_budget_of_equals_is_in_raster_order():
    sites = BudgetSelector(count=7)(torch.zeros(2, 2, 2), whole(4, 6))
    # blocks of 2 x 3: all of the first, and one pixel of the second
    assert as_set(sites) == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3)}
    # also where there are enough of them for a sort to mix them up
    sites = BudgetSelector(count=1234)(torch.zeros(2, 80, 100), whole(80, 100))
    assert (sites[:, 0] * 100 + sites[:, 1]).tolist() == list(range(1234))


@pytest.mark.parametrize("low, full", SIZES)
def test_highest_is_a_sort(low, full):
    """Scores of all sizes, ties among them, against weights that differ."""
    weights = pixels_under(low, full)
    for scores in (torch.rand(low) * 1e-3, torch.rand(low).mul(4).round(), torch.randn(low) * 1e-7):
        order = scores.clamp(min=0).flatten().sort(descending=True, stable=True).indices.tolist()
        for budget in range(full[0] * full[1]):
            mask, following, rest = highest(scores, weights, budget)
            whole, left = [], budget
            for place in order:
                if weights.view(-1)[place] > left:
                    break
                whole.append(place)
                left -= int(weights.view(-1)[place])
            assert mask.flatten().nonzero()[:, 0].tolist() == sorted(whole)
            assert (following, rest) == (order[len(whole)], left)


@pytest.mark.parametrize("full", [(4, 6), (5, 7)], ids=["equal weights", "odd scale"])
def test_a_budget_takes_what_is_not_a_number_first(full):
    logits = torch.randn(3, 2, 3)
    logits[:, 1, 1] = math.nan
    sites = as_set(BudgetSelector(count=4)(logits, whole(*full)))
    low = {((2 * y + 1) * 2 // (2 * full[0]), (2 * x + 1) * 3 // (2 * full[1])) for y, x in sites}
    assert len(sites) == 4 and low == {(1, 1)}


def test_budgets_by_margin_and_at_random():
    # margins 0.2, 0.1, 0.6; the entropy of three classes orders the first two the other way round
    logits = torch.tensor([[[0.45, 0.53, 0.8]], [[0.25, 0.43, 0.2]], [[0.30, 0.04, 0.0]]]).log()
    assert BudgetSelector(count=1)(logits, whole(1, 3)).tolist() == [[0, 0]]
    assert MarginBudgetSelector(count=1)(logits, whole(1, 3)).tolist() == [[0, 1]]

    random = RandomBudgetSelector(fraction=0.25)
    sites = random(torch.randn(2, 40, 50), whole(80, 100))
    assert len(sites) == 2000 and torch.equal(sites, random(torch.zeros(2, 40, 50), whole(80, 100)))
    # spread over the image: a quarter of each quarter of it, give or take
    for top, left in ((0, 0), (0, 50), (40, 0), (40, 50)):
        inside = (sites[:, 0] // 40 * 40 == top) & (sites[:, 1] // 50 * 50 == left)
        assert 400 < int(inside.sum()) < 600


def test_a_selector_of_ones_own_is_a_class_and_a_name(make_cfg):
    from sparse_refine import SparseRefine
    from sparse_refine.selector import Selector

    class CornerSelector(Selector):
        def __init__(self, cfg):
            super().__init__()

        def forward(self, logits, view):
            return torch.zeros(1, 2, dtype=torch.int64)

    SELECTOR_REGISTRY.register(CornerSelector)
    try:
        cfg = make_cfg("MODEL.SPARSE_REFINE.SELECTOR.NAME", "CornerSelector")
        model = SparseRefine(cfg).eval()
        output = model([{"image": torch.zeros(3, 4, 5, dtype=torch.uint8)}])[0]
        assert output["refinement"].sites.tolist() == [[0, 0]]
    finally:
        del SELECTOR_REGISTRY._obj_map["CornerSelector"]


def test_a_kept_entropy_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "sparse_refine.selector.entropy", lambda logits: calls.append(1) or entropy(logits)
    )
    logits = torch.randn(3, 4, 5)
    for _ in range(2):  # nobody said that it stays as it is
        entropy_map(logits)
        logits += 1
    assert len(calls) == 2
    keep_entropy(logits)
    assert entropy_map(logits) is entropy_map(logits) and len(calls) == 3
