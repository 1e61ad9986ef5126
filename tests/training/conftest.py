# SPDX-License-Identifier: Apache-2.0
"""Runs of train_net.py on a tiny data set."""

import pytest

from .runs import train_net


@pytest.fixture
def run(tiny_dataset, make_cfg, tmp_path, quiet_logs, monkeypatch):
    """run(folder, *options, flags=()) -> what main() returned; the output is in tmp_path/folder."""
    name = tiny_dataset()
    monkeypatch.setattr("detectron2.engine.defaults.collect_env_info", str)  # asks compilers

    def run(folder, *options, flags=()):
        cfg = make_cfg(
            "DATASETS.TRAIN",
            (name,),
            "DATASETS.TEST",
            (name,),
            "OUTPUT_DIR",
            str(tmp_path / folder),
        )
        cfg.merge_from_list(list(options))
        return train_net(cfg, *flags)

    return run
