# SPDX-License-Identifier: Apache-2.0
"""The training stream is a function of seed and position alone; the test loader gives each once."""

import itertools

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from sparse_refine.data import build_test_loader, build_train_loader
from sparse_refine.data.loader import ShuffledStream


def take(iterable, count):
    return list(itertools.islice(iterable, count))


def of_process(monkeypatch, rank, size):
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: size)


def test_each_epoch_is_a_permutation_of_its_own():
    pairs = take(ShuffledStream(7, seed=3), 28)
    assert [position for position, _ in pairs] == list(range(28))
    epochs = [tuple(index for _, index in pairs[i : i + 7]) for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_the_stream_depends_on_the_seed():
    one, two, other = (take(ShuffledStream(50, seed), 50) for seed in (1, 1, 2))
    assert one == two != other


@pytest.mark.parametrize("start", [1, 6, 7, 8, 20])
def test_a_stream_goes_on_at_its_start(start):
    whole = take(ShuffledStream(7, seed=3), 40)
    assert take(ShuffledStream(7, seed=3, start=start), 40 - start) == whole[start:]


@pytest.mark.parametrize("start", [0, 6])
@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_stream(monkeypatch, size, start):
    whole = take(ShuffledStream(7, seed=3), start + 30)[start:]
    parts = []
    for rank in range(size):
        of_process(monkeypatch, rank, size)
        parts.append(take(ShuffledStream(7, seed=3, start=start), 30 // size))
    assert sorted(itertools.chain(*parts)) == whole
    # and each batch of all processes is the same set of samples that one process would take
    for i in range(30 // size):
        assert {part[i] for part in parts} == set(whole[i * size : (i + 1) * size])


AUGMENT = ["INPUT.RESIZE_RANGE", [0.5, 2.0], "INPUT.COLOR_AUG_SSD", True]


def batches(cfg, count, start=0):
    loader = build_train_loader(cfg)
    loader.batch_sampler.sampler.start = start
    return take(loader, count)


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second):
        assert a.keys() == b.keys() and a["file_name"] == b["file_name"] and a["crop"] == b["crop"]
        for key in ("image", "context", "sem_seg"):
            assert torch.equal(a[key], b[key])


@pytest.fixture
def train_cfg(make_cfg, tiny_dataset):
    name = tiny_dataset(count=5)

    def make(*options):
        return make_cfg("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), *AUGMENT, *options)

    return make


def samples(batches_):
    return list(itertools.chain(*batches_))


def test_the_same_stream_for_any_number_of_workers(train_cfg):
    alone = samples(batches(train_cfg(), 6))
    assert len({item["file_name"] for item in alone}) == 5
    for workers in (1, 2):
        assert_same(alone, samples(batches(train_cfg("DATALOADER.NUM_WORKERS", workers), 6)))


def test_the_same_stream_after_a_resume(train_cfg):
    whole = samples(batches(train_cfg(), 6))
    assert_same(whole[4:], samples(batches(train_cfg(), 4, start=4)))
    # an image that comes again is augmented anew
    again = [item for item in whole if item["file_name"] == whole[0]["file_name"]]
    assert len(again) > 1 and again[0]["crop"] != again[1]["crop"]


def test_the_same_stream_in_two_processes(train_cfg, monkeypatch):
    whole = samples(batches(train_cfg(), 3))
    parts = []
    for rank in (0, 1):
        of_process(monkeypatch, rank, 2)
        parts.append(samples(batches(train_cfg(), 3)))
    assert_same(whole, samples(zip(*parts)))


def test_a_seed_below_zero_is_drawn(train_cfg):
    drawn = [[item["crop"] for item in samples(batches(train_cfg("SEED", -1), 3))] for _ in "ab"]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("images, processes", [(3, 2), (0, 1), (1, 4)])
def test_batches_that_cannot_be_shared(train_cfg, monkeypatch, images, processes):
    of_process(monkeypatch, 0, processes)
    with pytest.raises(ValueError, match=rf"IMS_PER_BATCH is {images}.*processes, {processes}"):
        build_train_loader(train_cfg("SOLVER.IMS_PER_BATCH", images))


def test_labels_out_of_range_stop_the_training(train_cfg, tmp_path):
    from PIL import Image

    label = next(tmp_path.rglob("labels/3.png"))
    broken = Image.open(label).point(lambda value: 9)
    broken.save(label)
    with pytest.raises(ValueError, match=r"3\.png.*\b9\b"):
        batches(train_cfg(), 6)


def test_each_test_image_once(train_cfg, make_cfg):
    cfg = train_cfg()
    (name,) = cfg.DATASETS.TEST
    loaded = [item for batch in build_test_loader(cfg, name) for item in batch]
    names = [item["file_name"] for item in loaded]
    assert len(names) == len(set(names)) == 5
    assert all(item["image"].shape == (3, 40, 56) for item in loaded)
    rest = build_test_loader(cfg, name, keep=lambda dicts: dicts[3:])
    assert [item["file_name"] for batch in rest for item in batch] == names[3:]
    assert list(build_test_loader(cfg, name, keep=lambda dicts: [])) == []


PAIR = {"file_name": "a.jpg", "sem_seg_file_name": "a.png"}


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "gives nothing: a list of dicts with 'file_name' and 'sem_seg_file_name'"),
        ((each for each in [PAIR]), "gives a generator: a list of dicts"),
        ([PAIR, {"file_name": "b.jpg"}], r"entry 1 has keys \['file_name'\]: a list of dicts"),
        ([PAIR, ("b.jpg", "b.png")], "entry 1 has tuple: a list of dicts"),
    ],
)
def test_what_a_registered_function_may_not_give(make_cfg, given, message):
    DatasetCatalog.register("theirs", lambda: given)
    try:
        with pytest.raises(ValueError, match=f"data set 'theirs'.* {message}"):
            build_train_loader(make_cfg("DATASETS.TRAIN", ("theirs",)))
    finally:
        DatasetCatalog.remove("theirs")
