# SPDX-License-Identifier: Apache-2.0
"""Data loaders whose stream is a function of seed and position alone.

Detectron2's training sampler starts from the beginning after a resume, and augmentation depends on
the number of workers. Here sample n of the stream is the same image with the same augmentation for
any number of workers or processes, and a resumed run takes up the stream where it was broken.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.utils import comm
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from .mapper import SegmentationMapper


class ShuffledStream(Sampler):
    """Endless (position, index) pairs: each epoch a new permutation of `size` images.

    Process r of n takes positions r, r + n, ...; `start` is the first position, to resume at.
    """

    def __init__(self, size: int, seed: int, start: int = 0):
        self.size = size
        self.seed = seed
        self.start = start

    def __iter__(self):
        positions = itertools.count(self.start + comm.get_rank(), comm.get_world_size())
        epoch, order = -1, None
        for position in positions:
            if position // self.size != epoch:  # a function of seed and epoch: no state to resume
                epoch = position // self.size
                order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            yield position, int(order[position % self.size])


class SeededDataset(Dataset):
    """Maps (position, index) to the mapper's result for that dict, with a "seed" of its own."""

    def __init__(self, dicts: list[dict], mapper, seed: int):
        self.dicts = dicts
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        position, index = item
        # of the position in the stream, so that no image is augmented alike in two epochs
        seed = int(np.random.SeedSequence([self.seed, position]).generate_state(1)[0])
        return self.mapper({**self.dicts[index], "seed": seed})


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Endless batches of cfg.SOLVER.IMS_PER_BATCH (over all processes) from cfg.DATASETS.TRAIN.

    A cfg.SEED below 0 draws a seed. The stream is `loader.batch_sampler.sampler`; its `start` may
    be moved before the first batch is asked for.

    Raises:
        ValueError: IMS_PER_BATCH is not a multiple of the number of processes; or see
            `dataset_dicts`.
    """
    processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: it must be a positive multiple "
            f"of the number of processes, {processes}"
        )
    dicts = dataset_dicts(cfg.DATASETS.TRAIN, ("file_name", "sem_seg_file_name"))
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    dataset = SeededDataset(dicts, SegmentationMapper(cfg, is_train=True), seed)
    stream = ShuffledStream(len(dicts), seed)
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(stream, cfg.SOLVER.IMS_PER_BATCH // processes, drop_last=True),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
    )


def dataset_dicts(names: Sequence[str], keys: Sequence[str]) -> list[dict]:
    """The dicts of data sets, one set after the other, as the functions give them that somebody
    registered under their names.

    Raises:
        ValueError: one gives no list of dicts with `keys`, or an empty one.
    """
    needed = f"a list of dicts with {' and '.join(map(repr, keys))} is needed"
    all_dicts = []
    for name in names:
        dicts = DatasetCatalog.get(name)
        if not hasattr(dicts, "__len__") or not len(dicts):
            found = "nothing" if hasattr(dicts, "__len__") else f"a {type(dicts).__name__}"
            raise ValueError(f"data set {name!r} gives {found}: {needed}")
        for index, item in enumerate(dicts):
            if not isinstance(item, dict) or not all(key in item for key in keys):
                found = f"keys {sorted(item)}" if isinstance(item, dict) else type(item).__name__
                raise ValueError(f"data set {name!r}, entry {index} has {found}: {needed}")
            # a Path is opened by everything, but no JSON holds it
            paths = {key: os.fspath(item[key]) for key in keys}
            all_dicts.append({**item, **paths})
    return all_dicts


def build_test_loader(cfg: CfgNode, dataset_name: str, keep=None):
    """Every image of a dataset once, one a batch; `keep` filters the dicts (resumed evaluation)."""
    dicts = dataset_dicts([dataset_name], ("file_name",))
    if keep is not None:
        dicts = keep(dicts)
        if not dicts:
            return []  # Detectron2's sampler refuses to be empty
    return build_detection_test_loader(
        dicts,
        mapper=SegmentationMapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
