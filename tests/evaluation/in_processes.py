# SPDX-License-Identifier: Apache-2.0
"""What test_records.py runs as a script: FOLDER. One evaluation, by one process and by two."""

import sys
from pathlib import Path

import numpy as np
from detectron2.engine import launch
from label_maps import late_refinement, register

from sparse_refine.evaluation import SparseRefineEvaluator


def run_in_processes(folder, processes):
    """Evaluate five images, split among the processes; the last one also sees the first image."""
    from detectron2.utils import comm

    rank, size = comm.get_rank(), comm.get_world_size()
    assert size == processes
    truths = [np.random.default_rng(i).integers(0, 3, (5, 6)).astype(np.uint8) for i in range(5)]
    for part in range(size):  # the label files are there before anybody reads them
        if part == rank:
            records = register("pairs", folder, truths)
        comm.synchronize()
    mine = list(range(rank, 5, size)) + ([0] if rank == size - 1 else [])
    output_dir = Path(folder) / ("one" if size == 1 else "two")
    evaluator = SparseRefineEvaluator("pairs", output_dir, boundary_distance=1)
    for _ in range(2):  # the second round removes the first one's records
        evaluator.reset()
        for i in mine:
            evaluator.process([records[i]], [late_refinement(labels_only=i % 2 == 0)])
        results = evaluator.evaluate()
    assert (results is None) == (rank > 0)
    if size > 1:  # what another process has done is not done again
        resumed = SparseRefineEvaluator("pairs", output_dir, boundary_distance=1, resume=True)
        assert resumed.remaining(records) == []
        resumed.reset()
        again = resumed.evaluate()
        assert rank > 0 or str(again) == str(results)


if __name__ == "__main__":
    run_in_processes(sys.argv[1], 1)
    launch(run_in_processes, 2, dist_url="auto", args=(sys.argv[1], 2))
