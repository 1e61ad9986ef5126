# SPDX-License-Identifier: Apache-2.0
"""The evaluator on label maps with accuracies worked out by hand."""

import time

import numpy as np
import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from torch import nn

from sparse_refine.evaluation import ForwardTimer, SparseRefineEvaluator, label_map_of

from .label_maps import LATE, TRUTH, Refinement, base_output, evaluate, late_refinement, numbers


class Model(nn.Module):
    """Gives each image the output that the test wrote into its dict."""

    def forward(self, inputs):
        return [image["output"] for image in inputs]


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


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_a_model_of_other_classes(dataset, classes):
    """One of two classes would be counted as a model of three that never finds the third."""
    name, records = dataset([TRUTH])
    evaluator = SparseRefineEvaluator(name, boundary_distance=1)
    output = {"sem_seg": torch.zeros(classes, *TRUTH.shape)}
    with pytest.raises(ValueError, match=rf"scores of {classes} classes, the data set has 3"):
        evaluate(evaluator, records, [output])
