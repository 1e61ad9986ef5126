# SPDX-License-Identifier: Apache-2.0
"""Matching, merging and un-merging against a reference that is written out in loops."""

from __future__ import annotations

import math

import pytest
import torch

from sparse_refine.modeling.token_merging import PRESETS, Merge
from sparse_refine.modeling.token_merging import matching as module
from sparse_refine.modeling.token_merging.matching import find_groups

SIZES = [(8, 8), (4, 12), (7, 10), (5, 5), (9, 6), (13, 11)]
MERGES = [
    Merge((2, 2), 0.6),
    Merge((4, 4), 0.8),
    Merge((4, 4), 0.9),
    Merge((2, 3), 0.3),
    Merge((2, 2), 1.0),  # all sources
    Merge((3, 1), 0.5),
    Merge((2, 2), 0.6, reach=1),
    Merge((4, 4), 0.9, reach=1),
    Merge((2, 3), 0.4, reach=0),
    Merge((2, 2), 0.5, reach=2),
]


def whole_numbers(images: int, count: int, channels: int = 5) -> torch.Tensor:
    """Tokens whose sums are exact, whatever their order."""
    return torch.randint(-50, 50, (images, count, channels)).double()


def reference(tokens: torch.Tensor, size, how: Merge):
    """One image's (N,C): merged tokens, in the order of those that stay, and where each went."""
    (height, width), (rows, columns) = size, how.cell
    down, across = height // rows, width // columns
    unit = [[number / math.hypot(*token) for number in token] for token in tokens.tolist()]
    destinations = {(i * rows, j * columns): (i, j) for i in range(down) for j in range(across)}
    found = []  # (similarity, source, destination)
    for y in range(height):
        for x in range(width):
            if (y, x) in destinations:
                continue
            own = min(y // rows, down - 1), min(x // columns, across - 1)
            best = None
            for (to_y, to_x), (i, j) in destinations.items():
                if how.reach is not None and max(abs(i - own[0]), abs(j - own[1])) > how.reach:
                    continue
                source, destination = y * width + x, to_y * width + to_x
                cosine = sum(a * b for a, b in zip(unit[source], unit[destination]))
                if best is None or cosine > best[0]:
                    best = (cosine, source, destination)
            found.append(best)
    found.sort(key=lambda entry: -entry[0])
    merged = found[: min(int(height * width * how.rate), len(found))]
    goes_to = {source: destination for _, source, destination in merged}
    stays = [n for n in range(height * width) if n not in goes_to]
    members = {n: [n] for n in stays}
    for source, destination in goes_to.items():
        members[destination].append(source)
    means = torch.stack([tokens[members[n]].sum(0) / len(members[n]) for n in stays])
    place = [stays.index(goes_to.get(n, n)) for n in range(height * width)]
    return means, place


@pytest.mark.parametrize("how", MERGES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_matches_the_reference(size, how):
    tokens = whole_numbers(3, size[0] * size[1])
    groups = find_groups(tokens, size, how)
    if how.left(size) == size[0] * size[1]:  # no whole cell
        assert groups is None
        return
    merged = groups.merge(tokens)
    output = whole_numbers(*merged.shape)
    back = groups.unmerge(output)
    assert merged.shape[1] == how.left(size) < tokens.shape[1] == back.shape[1]
    for i in range(3):
        means, place = reference(tokens[i], size, how)
        assert torch.equal(merged[i], means)
        assert torch.equal(back[i], output[i][place])


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 5)])
@pytest.mark.parametrize("cell", [(2, 2), (3, 2), (1, 4)])
def test_cells_are_averaged(size, cell):
    tokens = whole_numbers(2, size[0] * size[1])
    groups = find_groups(tokens, size, Merge(cell))
    merged, grid = groups.merge(tokens), tokens.unflatten(1, size)
    output = whole_numbers(*merged.shape)
    back = groups.unmerge(output).unflatten(1, size)
    wide = math.ceil(size[1] / cell[1])
    assert merged.shape[1] == math.ceil(size[0] / cell[0]) * wide
    for y in range(0, size[0], cell[0]):
        for x in range(0, size[1], cell[1]):
            part = grid[:, y : y + cell[0], x : x + cell[1]].flatten(1, 2)
            number = y // cell[0] * wide + x // cell[1]
            assert torch.equal(merged[:, number], part.sum(1) / part.shape[1])
            part = back[:, y : y + cell[0], x : x + cell[1]].flatten(1, 2)
            assert (part == output[:, number, None]).all()


def test_strips_do_not_matter(monkeypatch):
    """Similarities are made a few rows of cells at a time."""
    tokens, how = torch.randn(2, 22 * 13, 6), Merge((3, 2), 0.5)
    whole = find_groups(tokens, (22, 13), how)
    monkeypatch.setattr(module, "_STRIP", 1)
    assert torch.equal(find_groups(tokens, (22, 13), how).index, whole.index)


def test_a_reach_over_the_map_is_none():
    tokens = torch.randn(1, 12 * 12, 6)
    near, far = (find_groups(tokens, (12, 12), Merge((2, 2), 0.5, reach)) for reach in (6, None))
    assert torch.equal(near.index, far.index)
    near = find_groups(tokens, (12, 12), Merge((2, 2), 0.5, 1))
    assert not torch.equal(near.index, far.index)


def test_leading_tokens_stay():
    tokens = whole_numbers(2, 2 + 36)
    how = Merge((2, 2), 0.6)
    groups, alone = find_groups(tokens, (6, 6), how), find_groups(tokens[:, 2:], (6, 6), how)
    merged = groups.merge(tokens)
    assert torch.equal(merged[:, :2], tokens[:, :2])
    assert torch.equal(merged[:, 2:], alone.merge(tokens[:, 2:]))
    assert torch.equal(groups.unmerge(merged)[:, :2], tokens[:, :2])


def test_equal_tokens_merge_from_the_top():
    """Of equal similarities the first: the same groups on every run, and no NaN from zeros."""
    groups = find_groups(torch.zeros(1, 16, 3), (4, 4), Merge((2, 2), 0.25))
    assert groups.index.tolist() == [[0, 0, 1, 0, 0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


def test_autocast_does_not_blur_the_matching():
    tokens = 1 + 0.05 * torch.randn(1, 256, 8)  # in bfloat16 most similarities are equal
    how = Merge((4, 4), 0.5)
    exact = find_groups(tokens, (16, 16), how)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(find_groups(tokens, (16, 16), how).index, exact.index)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tokens = torch.randn(2, 64, 8).to(dtype)
    groups = find_groups(tokens, (8, 8), Merge((4, 4), 0.9))
    merged = groups.merge(tokens)
    assert merged.dtype == dtype and groups.unmerge(merged).dtype == dtype
    torch.testing.assert_close(merged.float(), groups.merge(tokens.float()), atol=0.01, rtol=0.01)


@pytest.mark.parametrize("how", [Merge((2, 2), 0.6), Merge((2, 2)), Merge((2, 2), 0.6, 1)], ids=str)
def test_gradients(how):
    tokens = torch.randn(2, 1 + 20, 2, dtype=torch.double, requires_grad=True)
    groups = find_groups(tokens, (4, 5), how)
    assert torch.autograd.gradcheck(lambda x: groups.unmerge(groups.merge(x).sin()), tokens)


def test_nothing_to_merge():
    tokens = torch.randn(1, 9, 4)
    for how in (None, Merge((2, 2), 0.0), Merge((2, 2), 0.1), Merge((4, 4), 0.9), Merge((1, 1))):
        assert find_groups(tokens, (3, 3), how) is None  # 0.1 x 9 tokens is none; no 4 x 4 cell


@pytest.mark.parametrize(
    "options, message",
    [
        (((2,), 0.5), r"cell is \(2,\)"),
        (((2, 0), 0.5), r"cell is \(2, 0\)"),
        (((2, 2.0), 0.5), r"cell is \(2, 2.0\)"),
        (((2, 2), 1.5), "rate is 1.5"),
        (((2, 2), 0.5, -1), "reach is -1"),
        (((2, 2), None, 1), "reach is 1"),
    ],
)
def test_impossible_values(options, message):
    with pytest.raises(ValueError, match=message):
        Merge(*options)


# SegFormer at 1024 x 2048: its maps of queries, and of keys and values after reduction
QUERIES = [(256, 512), (128, 256), (64, 128), (32, 64)]
KEYS = [(32, 64)] * 4
LEFT = {  # (queries, keys) of each stage
    "hq": [(131072, 820), (32768, 820), (1639, 2048), (410, 2048)],
    "fast": [(131072, 205), (32768, 205), (820, 2048), (205, 2048)],
    "2x2": [(32768, 2048), (8192, 2048), (2048, 2048), (512, 2048)],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_token_counts_of_the_presets(preset):
    left = []
    for how, queries, keys in zip(PRESETS[preset], QUERIES, KEYS):
        left += [
            (
                how.query.left(queries) if how.query else math.prod(queries),
                how.key_value.left(keys) if how.key_value else math.prod(keys),
            )
        ]
    assert left == LEFT[preset.replace("_near", "")]
