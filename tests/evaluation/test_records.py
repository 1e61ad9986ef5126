# SPDX-License-Identifier: Apache-2.0
"""Records of an evaluation: stopped, resumed, refused, written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_refine.evaluation import SparseRefineEvaluator

from .label_maps import LATE, TRUTH, base_output, evaluate, late_refinement, numbers

SCRIPT = Path(__file__).with_name("in_processes.py")


def test_resume_after_a_torn_line(dataset, tmp_path, caplog):
    name, records = dataset([TRUTH] * 3)
    outputs = [late_refinement(True), late_refinement(False), late_refinement(True)]
    expected = evaluate(SparseRefineEvaluator(name, tmp_path / "whole"), records, outputs)

    folder = tmp_path / "stopped"
    first = SparseRefineEvaluator(name, folder, tag="a1b2")
    first.reset()
    first.process(records[:2], outputs[:2])  # and then the process is killed
    file = folder / "records_rank0.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    file.write_bytes(b"".join(lines)[:-20])

    second = SparseRefineEvaluator(name, folder, tag="a1b2", resume=True)
    assert [record["file_name"] for record in second.remaining(records)] == ["1.jpg", "2.jpg"]
    assert "torn" in caplog.text
    results = evaluate(second, second.remaining(records), outputs[1:])
    assert results == numbers(expected)
    assert file.read_bytes().splitlines(keepends=True)[:3] == lines

    third = SparseRefineEvaluator(name, folder, tag="a1b2", resume=True)
    assert third.remaining(records) == []
    assert evaluate(third, [], []) == numbers(expected)


def test_a_file_that_broke_in_its_header_begins_anew(dataset, tmp_path):
    name, records = dataset([TRUTH])
    (tmp_path / "records_rank0.jsonl").write_bytes(b'{"tag": "a1')
    evaluator = SparseRefineEvaluator(name, tmp_path, tag="a1b2", resume=True)
    evaluate(evaluator, evaluator.remaining(records), [base_output(LATE)])
    header, record = map(json.loads, (tmp_path / "records_rank0.jsonl").read_text().splitlines())
    assert header["tag"] == "a1b2" and record["file_name"] == "0.jpg"


def test_records_of_all_processes_are_resumed(dataset, tmp_path):
    name, records = dataset([TRUTH] * 2)
    evaluate(SparseRefineEvaluator(name, tmp_path), records[:1], [base_output(LATE)])
    (tmp_path / "records_rank0.jsonl").rename(tmp_path / "records_rank7.jsonl")
    evaluator = SparseRefineEvaluator(name, tmp_path, resume=True)
    assert evaluator.remaining(records) == records[1:]
    results = evaluate(evaluator, records[1:], [base_output(TRUTH)])
    assert results["pACC"] == pytest.approx(100 * 55 / 60)


def test_records_of_other_weights_are_refused(dataset, tmp_path):
    name, records = dataset([TRUTH])
    evaluate(SparseRefineEvaluator(name, tmp_path, tag="a1b2"), records, [base_output(LATE)])
    other = SparseRefineEvaluator(name, tmp_path, tag="c3d4", resume=True)
    for refused in (other.reset, lambda: other.remaining(records)):
        with pytest.raises(ValueError, match="other weights.*'a1b2' there and 'c3d4' here"):
            refused()
    other = SparseRefineEvaluator(name, tmp_path, tag="a1b2", boundary_distance=9, resume=True)
    with pytest.raises(ValueError, match="another boundary_distance"):
        other.reset()


def test_without_resume_old_records_go(dataset, tmp_path):
    name, records = dataset([TRUTH])
    evaluate(SparseRefineEvaluator(name, tmp_path, tag="a1b2"), records, [base_output(LATE)])
    (tmp_path / "records_rank1.jsonl").write_text("of a process that there no longer is\n")
    evaluator = SparseRefineEvaluator(name, tmp_path, tag="c3d4")
    assert evaluator.remaining(records) == records
    assert evaluate(evaluator, records, [base_output(TRUTH)])["mIoU"] == 100
    files = sorted(os.listdir(tmp_path))
    assert [file for file in files if file.startswith("rec")] == ["records_rank0.jsonl"]


def test_a_broken_line_in_the_middle_is_an_error(dataset, tmp_path):
    name, records = dataset([TRUTH])
    (tmp_path / "records_rank0.jsonl").write_text('{"tag": ""}\n{"file\n{"file_name": "0.jpg"}\n')
    with pytest.raises(ValueError, match=r"records_rank0.jsonl: line 2 of 3"):
        SparseRefineEvaluator(name, tmp_path, resume=True).reset()


def test_results_file(dataset, tmp_path):
    name, records = dataset([TRUTH])
    folder = tmp_path / "not" / "there"
    results = evaluate(SparseRefineEvaluator(name, folder, tag="x"), records, [base_output(LATE)])
    written = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert (written["dataset"], written["tag"], written["images"]) == (name, "x", 1)
    assert written["sparse_refine"]["mIoU"] == pytest.approx(results["mIoU"])
    assert written["sparse_refine"]["IoU-weed"] is None
    assert sorted(os.listdir(folder)) == ["records_rank0.jsonl", "results.json"]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    subprocess.run([sys.executable, SCRIPT, str(tmp_path)], env=environment, check=True)
    one, two = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two"))
    assert two == one and two["images"] == 5
    files = sorted(path.name for path in (tmp_path / "two").glob("records_*"))
    assert files == ["records_rank0.jsonl", "records_rank1.jsonl"]
