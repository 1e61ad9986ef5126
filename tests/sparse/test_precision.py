# SPDX-License-Identifier: Apache-2.0
"""bfloat16 on a CPU: taken where it is asked for, and said where it does not pay there."""

import logging

import pytest
import torch

from sparse_refine.extractors.extractor import autocast
from sparse_refine.sparse import precision

SLOW, FAST = (0.001, 0.05), (0.002, 0.001)  # seconds of a product in float32 and in bfloat16


@pytest.fixture
def processor(monkeypatch):
    """processor(seconds): one whose products take so long; nothing has been said yet."""

    def take(seconds):
        monkeypatch.setattr(precision, "product_seconds", lambda: seconds)
        precision.warn_of_slow_bfloat16.cache_clear()

    yield take
    precision.warn_of_slow_bfloat16.cache_clear()


def test_the_trial_is_of_this_processor_and_of_a_moment():
    precision.product_seconds.cache_clear()
    single, brain = precision.product_seconds()
    assert single > 0 and brain > 0
    assert precision.product_seconds() == (single, brain)  # once a process


@pytest.mark.parametrize("seconds, lines", [(SLOW, 1), (FAST, 0)], ids=["slow", "fast"])
def test_asked_for_by_name(processor, caplog, seconds, lines):
    """It is what was asked for in either case; a slow one is said once, with both figures."""
    processor(seconds)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with autocast("bfloat16", "cpu"):
                assert torch.is_autocast_enabled("cpu")
                product = torch.mm(torch.ones(2, 2), torch.ones(2, 2))
            assert product.dtype == torch.bfloat16
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == lines
    if lines:
        assert "EXTRACTOR.PRECISION is 'bfloat16'" in said[0]
        assert "50.00 ms in bfloat16 and 1.00 ms in float32" in said[0]


@pytest.mark.parametrize("seconds", [SLOW, FAST], ids=["slow", "fast"])
@pytest.mark.parametrize("name", ["auto", "float32"])
def test_not_asked_for(processor, caplog, name, seconds):
    processor(seconds)
    with caplog.at_level(logging.WARNING), autocast(name, "cpu"):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
    assert not caplog.records


def test_each_key_that_asks_for_it_is_named(processor, caplog):
    processor(SLOW)
    with caplog.at_level(logging.WARNING):
        for key in (
            "SOLVER.AMP.ENABLED True on a CPU",
            "EXTRACTOR.PRECISION",
            "EXTRACTOR.PRECISION",
        ):
            precision.warn_of_slow_bfloat16(key)
    assert len(caplog.records) == 2 and "SOLVER.AMP" in caplog.text
