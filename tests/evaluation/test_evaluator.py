# SPDX-License-Identifier: Apache-2.0
"""The evaluator on label maps with accuracies worked out by hand; stopped, resumed, in pairs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from detectron2.evaluation import inference_on_dataset
from PIL import Image
from torch import nn

from sparse_refine.evaluation import ForwardTimer, SparseRefineEvaluator, label_map_of

CLASSES = ["soil", "crop", "weed"]

# Truth: columns 0-2 soil, 3-5 crop. The prediction is one column late; see test_metrics.py for
# the boundary counts of this pair at a distance of one pixel: 9/17, 7/15.
TRUTH = np.array([[0, 0, 0, 1, 1, 1]] * 5, dtype=np.uint8)
LATE = np.array([[0, 0, 0, 0, 1, 1]] * 5, dtype=np.uint8)


class Refinement:
    """What a SparseRefine output holds, with the selected pixels' labels given."""

    def __init__(self, coarse_map, sites, coarse, refined, fused):
        self.sites = torch.as_tensor(sites, dtype=torch.int64).reshape(-1, 2)
        self.coarse, self.refined, self.fused = map(torch.as_tensor, (coarse, refined, fused))
        self.labels = torch.as_tensor(coarse_map)
        self.labels = self.label_map("fused")

    def label_map(self, kind):
        labels = self.labels.clone()
        labels[self.sites[:, 0], self.sites[:, 1]] = getattr(self, kind).to(labels.dtype)
        return labels


class Model(nn.Module):
    """Gives each image the output that the test wrote into its dict."""

    def forward(self, inputs):
        return [image["output"] for image in inputs]


def register(name, folder, truths):
    """A data set of label files in a folder, in Detectron2's catalogs."""
    records = []
    for index, truth in enumerate(truths):
        file_name = Path(folder) / f"{index}_label.png"
        Image.fromarray(truth).save(file_name)
        records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(file_name)})
        records[-1].update(height=truth.shape[0], width=truth.shape[1])
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255)
    return records


@pytest.fixture
def dataset(tmp_path):
    """dataset(truths) -> name and dicts of a data set of those label maps."""
    names = []

    def make(truths):
        names.append(f"{tmp_path.name}_{len(names)}")
        folder = tmp_path / names[-1]
        folder.mkdir()
        return names[-1], register(names[-1], folder, truths)

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def scores_of(labels):
    """Logits whose highest class is the label."""
    one_hot = torch.nn.functional.one_hot(torch.as_tensor(labels).long(), len(CLASSES))
    return one_hot.permute(2, 0, 1) * 2.5


def base_output(labels):
    return {"sem_seg": scores_of(labels)}


def late_refinement(labels_only):
    """Selects the wrong column 3: coarse wrong, refined right but for one pixel, fused right."""
    sites = [(y, 3) for y in range(5)]
    refinement = Refinement(LATE, sites, [0] * 5, [1, 1, 1, 1, 0], [1] * 5)
    answer = refinement.label_map("fused")
    output = {"labels": answer} if labels_only else {"sem_seg": scores_of(answer)}
    return {**output, "refinement": refinement}


def evaluate(evaluator, records, outputs):
    evaluator.reset()
    for record, output in zip(records, outputs):
        evaluator.process([record], [output])
    return evaluator.evaluate()["sparse_refine"]


def numbers(results):
    return {name: pytest.approx(value, nan_ok=True) for name, value in results.items()}


def test_a_plain_model_by_hand(dataset):
    name, records = dataset([TRUTH])
    evaluator = SparseRefineEvaluator(name, boundary_distance=1)
    results = evaluate(evaluator, records, [base_output(LATE)])
    assert results == numbers(
        {
            "mIoU": 100 * (15 / 20 + 10 / 15) / 2,
            "pACC": 100 * 25 / 30,
            "BoundaryIoU": 100 * (9 / 17 + 7 / 15) / 2,
            "IoU-soil": 75,
            "BoundaryIoU-soil": 100 * 9 / 17,
            "IoU-crop": 100 * 10 / 15,
            "BoundaryIoU-crop": 100 * 7 / 15,
            "IoU-weed": float("nan"),
            "BoundaryIoU-weed": float("nan"),
            "megapixels": 30e-6,
        }
    )


@pytest.mark.parametrize("labels_only", [True, False])
def test_three_arms_by_hand(dataset, labels_only, caplog):
    name, records = dataset([TRUTH])
    evaluator = SparseRefineEvaluator(name, boundary_distance=1)
    with caplog.at_level("INFO"):
        results = evaluate(evaluator, records, [late_refinement(labels_only)])
    assert results["mIoU"] == results["pACC"] == results["BoundaryIoU"] == 100
    assert results["coarse/mIoU"] == pytest.approx(100 * (15 / 20 + 10 / 15) / 2)
    assert results["coarse/BoundaryIoU-crop"] == pytest.approx(100 * 7 / 15)
    assert results["refined/mIoU"] == pytest.approx(100 * (15 / 16 + 14 / 15) / 2)
    assert results["refined/pACC"] == pytest.approx(100 * 29 / 30)
    # Selected pixels are all crop. Soil, where it is predicted, has IoU 0 and counts.
    selected = {key: results[f"selected/{key}"] for key in ("coarse/mIoU", "coarse/pACC")}
    assert selected == {"coarse/mIoU": 0, "coarse/pACC": 0}
    assert results["selected/refined/mIoU"] == pytest.approx((0 + 80) / 2)
    assert results["selected/refined/pACC"] == pytest.approx(80)
    assert results["selected/fused/mIoU"] == results["selected/fused/pACC"] == 100
    assert results["selected_fraction"] == pytest.approx(5 / 30)
    assert "seconds" not in results
    assert "fused" in caplog.text and "BoundaryIoU coarse" in caplog.text


def test_counts_are_summed_before_they_are_divided(dataset):
    soil = np.zeros((4, 5), dtype=np.uint8)
    soil[0, 0] = 255
    name, records = dataset([TRUTH, soil])
    outputs = [base_output(LATE), base_output(np.full((4, 5), 2))]
    results = evaluate(SparseRefineEvaluator(name, boundary_distance=1), records, outputs)
    assert results["IoU-soil"] == pytest.approx(100 * 15 / (20 + 19))
    assert results["IoU-crop"] == pytest.approx(100 * 10 / 15)
    assert results["IoU-weed"] == 0
    assert results["mIoU"] == pytest.approx(100 * (15 / 39 + 10 / 15) / 3)
    assert results["pACC"] == pytest.approx(100 * 25 / 49)
    assert results["megapixels"] == pytest.approx(25e-6)


def test_nothing_selected(dataset):
    name, records = dataset([TRUTH])
    refinement = Refinement(LATE, [], [], [], [])
    output = {"labels": refinement.labels, "refinement": refinement}
    results = evaluate(SparseRefineEvaluator(name), records, [output])
    assert results["selected_fraction"] == 0
    assert results["mIoU"] == results["coarse/mIoU"] == results["refined/mIoU"]
    assert np.isnan(results["selected/fused/mIoU"]) and np.isnan(results["selected/fused/pACC"])


def test_a_refinement_at_another_size_is_brought_to_the_truth(dataset):
    small = np.array([[0, 0], [1, 1]], dtype=np.uint8)
    truth = small.repeat(3, 0).repeat(2, 1)  # 6 x 4
    truth[0, 3] = 1
    name, records = dataset([truth])
    refinement = Refinement(small, [(0, 1)], [0], [2], [1])
    output = {"labels": torch.as_tensor(truth), "refinement": refinement}
    results = evaluate(SparseRefineEvaluator(name), records, [output])
    # The site covers 3 x 2 pixels of the truth, one of them crop.
    assert results["coarse/pACC"] == pytest.approx(100 * 23 / 24)
    assert results["refined/pACC"] == pytest.approx(100 * 18 / 24)
    assert results["pACC"] == pytest.approx(100 * 19 / 24)
    assert results["selected/coarse/pACC"] == pytest.approx(100 * 5 / 6)
    assert results["selected/fused/pACC"] == pytest.approx(100 / 6)
    assert results["selected_fraction"] == pytest.approx(1 / 4)


def test_errors_name_the_file(dataset, tmp_path):
    name, records = dataset([TRUTH, np.full((5, 6), 7, dtype=np.uint8)])
    evaluator = SparseRefineEvaluator(name)
    evaluator.reset()
    with pytest.raises(ValueError, match=r"0\.jpg.*0_label\.png.* 5 x 5 .* 5 x 6"):
        evaluator.process(records[:1], [base_output(LATE[:, :5])])
    with pytest.raises(ValueError, match=r"0\.jpg.*prediction holds label 3, expected 0\.\.2"):
        evaluator.process(records[:1], [{"labels": torch.full((5, 6), 3)}])
    with pytest.raises(ValueError, match=r"0\.jpg.*NaN"):
        evaluator.process(records[:1], [{"sem_seg": torch.full((3, 5, 6), float("nan"))}])
    with pytest.raises(ValueError, match=r"(?s)1_label\.png.*7|7.*1_label\.png"):
        evaluator.process(records[1:], [base_output(LATE)])
    with pytest.raises(ValueError, match="boundary_distance is 0"):
        SparseRefineEvaluator(name, boundary_distance=0)
    with pytest.raises(ValueError, match="output_dir"):
        SparseRefineEvaluator(name, resume=True)


def test_models_with_and_without_refinement_do_not_mix(dataset):
    name, records = dataset([TRUTH, TRUTH])
    with pytest.raises(ValueError, match="mix"):
        outputs = [base_output(LATE), late_refinement(True)]
        evaluate(SparseRefineEvaluator(name), records, outputs)


def test_an_image_counts_once(dataset):
    name, records = dataset([TRUTH, TRUTH])
    outputs = [base_output(TRUTH), base_output(LATE)]
    expected = evaluate(SparseRefineEvaluator(name), records, outputs)
    twice = evaluate(SparseRefineEvaluator(name), records * 2, outputs * 2)
    assert twice == numbers(expected)


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


def test_images_left_out_are_said(dataset, caplog):
    name, records = dataset([TRUTH, TRUTH])
    evaluate(SparseRefineEvaluator(name), records[:1], [base_output(LATE)])
    assert "1 of 2 images" in caplog.text
    results = evaluate(SparseRefineEvaluator(name), [], [])
    assert np.isnan(results["mIoU"])


def test_through_detectron2_with_seconds(dataset, capsys):
    name, records = dataset([TRUTH] * 4)
    images = [{**record, "output": base_output(LATE)} for record in records]
    model = Model()
    evaluator = SparseRefineEvaluator(name, boundary_distance=1, progress=True)
    timer = evaluator.watch(model)
    results = inference_on_dataset(model, [images[:1], images[1:]], evaluator)["sparse_refine"]
    assert results["mIoU"] == pytest.approx(100 * (15 / 20 + 10 / 15) / 2)
    one, three = timer.seconds  # two calls; the second one's seconds are three images'
    assert results["seconds"] == pytest.approx((one + three) / 4)
    assert results["seconds_median"] == pytest.approx(np.median([one] + [three / 3] * 3))
    assert "4/4" in capsys.readouterr().err
    model(images)
    assert len(timer.seconds) == 2  # no hook stays on the model
    inference_on_dataset(model, [images], evaluator)
    assert len(timer.seconds) == 3  # and the next round puts them back


def test_forward_timer():
    class Sleeper(nn.Module):
        def forward(self, seconds):
            time.sleep(seconds)

    model = Sleeper()
    with ForwardTimer(model) as timer:
        timer.install()  # a second time: no second pair of hooks
        model(0.02)
        model(0.0)
    model(0.0)
    assert len(timer.seconds) == 2
    assert 0.02 <= timer.seconds[0] < 1 and timer.seconds[1] < 0.02
    with pytest.raises(TypeError, match="function"):
        ForwardTimer(lambda x: x)


@pytest.mark.parametrize("classes", [1, 2, 19, 300])
def test_label_map_is_the_first_highest_score(classes):
    scores = torch.randint(0, 50, (classes, 13, 17), generator=torch.Generator().manual_seed(0))
    for kind in (torch.float32, torch.bfloat16):
        labels = label_map_of({"sem_seg": scores.to(kind)})
        expected = np.argmax(scores.numpy(), axis=0)  # numpy promises the first of equals
        assert (labels == expected).all()
    assert labels.dtype == (np.uint8 if classes <= 256 else np.int16)


def test_two_processes_give_what_one_gives(tmp_path):
    """The file runs itself as a script, because processes that `launch` spawns import by file."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, check=True)
    one, two = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two"))
    assert two == one and two["images"] == 5
    files = sorted(path.name for path in (tmp_path / "two").glob("records_*"))
    assert files == ["records_rank0.jsonl", "records_rank1.jsonl"]


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
