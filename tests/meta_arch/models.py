# SPDX-License-Identifier: Apache-2.0
"""Images, and bases and extractors whose outputs are known."""

import math

import torch
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.coarse import CoarsePass
from sparse_refine.ensembler import EntropyEnsembler
from sparse_refine.extractors import Extractor
from sparse_refine.selector import EntropySelector

LN3 = math.log(3)
METHOD = "MODEL.SPARSE_REFINE."
SELECT = METHOD + "SELECTOR.THRESHOLD"
# nothing, some and all of what TinyBase is unsure of (at most ln 3 = 1.0986)
THRESHOLDS = {"none": 2.0, "some": 0.8, "all": 0.0}


def image_of(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def training_item(height, width, seed=0, classes=3):
    generator = torch.Generator().manual_seed(100 + seed)
    labels = torch.randint(0, classes, (height, width), generator=generator)
    labels[0, :3] = 255
    return {"image": image_of(height, width, seed), "sem_seg": labels}


class Given(nn.Module):
    """A base of fixed scores, without parameters."""

    def __init__(self, scores):
        super().__init__()
        self.register_buffer("scores", scores)
        self.sem_seg_head = None

    def forward(self, inputs):
        return [{"sem_seg": self.scores.clone()} for _ in inputs]


class Recorder(Extractor):
    """An extractor of fixed logits, one row for every site, that keeps its arguments."""

    def __init__(self, *row):
        super().__init__()
        self.row = nn.Parameter(torch.tensor(row))

    def forward(self, selection):
        self.given = {
            "pixels": selection.pixels(),
            "coarse": selection.coarse,
            "position": selection.position(),
        }
        self.sites, self.sizes = selection.sites.coordinates, selection.sites.sizes
        return self.row.expand(len(self.sites), -1)


def model_of_two_classes(extractor, scores, **options):
    return SparseRefine(
        coarse=CoarsePass(base=Given(scores), num_classes=2, scale=0.5),
        selector=EntropySelector(threshold=0.5),
        extractor=extractor,
        ensembler=EntropyEnsembler(),
        **options,
    )


# Two low pixels over a 2 x 4 image: the left one certain of class 1, with an entropy of
# e^-18 * -ln 1e-5 = 1.523e-8 * 11.513, the right one even.
SCORES = torch.tensor([[[-9.0, 0.0]], [[9.0, 0.0]]])


def train(model, items, steps, lr=0.01):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    totals = []
    model.train()
    for _ in range(steps):
        total = sum(model(items).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return totals
