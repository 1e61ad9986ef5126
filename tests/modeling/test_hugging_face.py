# SPDX-License-Identifier: Apache-2.0
"""Models of transformers: the same numbers as by hand, under a refiner, in training."""

import pytest
import torch
import torch.nn.functional as F

from sparse_refine import HuggingFaceSegmentor, SparseRefine
from sparse_refine.inference.loading import load_model
from sparse_refine.modeling.hugging_face import query_scores
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

from .hugging_face import (
    NODE,
    K,
    encoder_only,
    image_of,
    mask2former_config,
    run,
    saved,
    segformer_config,
    transformers,
)

# ---- parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("size, wanted", [((64, 96), (64, 96)), ((75, 101), (150, 202))])
def test_segformer_by_hand(tmp_path, size, wanted, image_format):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    reference = saved(tmp_path, segformer_config(), image_mean=mean, image_std=std)
    image = image_of(*size)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    inputs = processor(image, do_resize=False, return_tensors="pt")
    with torch.inference_mode():
        logits = reference(**inputs).logits
    expected = F.interpolate(logits, size=wanted, mode="bilinear", align_corners=False)[0]

    model = HuggingFaceSegmentor.from_pretrained(str(tmp_path), image_format=image_format)
    given = image if image_format == "RGB" else image.flip(0)
    answer = run(model, given, height=wanted[0], width=wanted[1])
    assert answer.shape == (K, *wanted) and expected.std() > 0.01
    assert torch.allclose(answer, expected, atol=1e-5)


def test_mask2former_by_hand(tmp_path):
    reference = saved(tmp_path, mask2former_config())
    image = image_of(75, 101)
    mean = torch.tensor([0.48500001430511475, 0.4560000002384186, 0.4059999883174896])
    std = torch.tensor([0.2290000021457672, 0.2239999920129776, 0.22499999403953552])
    pixels = (image / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        output = reference(pixel_values=F.pad(pixels, (0, 27, 0, 21))[None])
    masks = F.interpolate(
        output.masks_queries_logits, size=(96, 128), mode="bilinear", align_corners=False
    )
    classes = output.class_queries_logits[0].softmax(1)[:, :K]
    expected = (classes[:, :, None, None] * masks[0].sigmoid()[:, None]).sum(0)[:, :75, :101]

    answer = run(HuggingFaceSegmentor.from_pretrained(str(tmp_path)), image)
    assert answer.shape == (K, 75, 101) and expected.std() > 0.01
    assert torch.allclose(answer, expected, atol=1e-5)


def test_scores_of_queries_by_hand():
    classes = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 0.0, 9.0]]])
    masks = torch.tensor([[[[0.0]], [[3.0]]]])
    a, b = torch.tensor([2.0, 0.0, 1.0]).softmax(0), torch.tensor([0.0, 0.0, 9.0]).softmax(0)
    expected = a[:2] * 0.5 + b[:2] * torch.tensor(3.0).sigmoid()
    assert torch.allclose(query_scores(classes, masks, (2, 2))[0, :, 1, 1], expected)


# ---- in the whole --------------------------------------------------------------------------------


def test_wrap_without_yaml(tmp_path):
    saved(tmp_path, mask2former_config())
    base = HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    model = SparseRefine.wrap(base, num_classes=K).eval()
    assert model.coarse.base is base and model.coarse.score_type == "scores"
    with torch.inference_mode():
        assert model([{"image": image_of(75, 101)}])[0]["sem_seg"].shape == (K, 75, 101)
    with pytest.raises(ValueError, match="returns scores.*'logits'"):
        SparseRefine.wrap(base, num_classes=K, score_type="logits")


def test_a_refiner_on_a_checkpoint_of_the_hub(make_cfg, tiny_dataset, tmp_path, quiet_logs):
    """Its weights come with its name: neither BASE.WEIGHTS nor the exported file holds them."""
    saved(tmp_path / "hub", segformer_config())
    cfg = make_cfg(
        *("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "HuggingFaceSegmentor"),
        *(NODE + "NAME", str(tmp_path / "hub"), "DATASETS.TRAIN", (tiny_dataset(),)),
        *("OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", 1),
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    state = trainer.model.state_dict()
    refiner = {name: x for name, x in state.items() if not name.startswith("coarse.base.")}
    save_weights(refiner, tmp_path / "refiner.safetensors")
    cfg.merge_from_list(["MODEL.WEIGHTS", str(tmp_path / "refiner.safetensors")])
    loaded = load_model(cfg).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())


def test_train_net_trains_it_as_a_dense_model(make_cfg, tiny_dataset, tmp_path, quiet_logs):
    encoder_only(tmp_path / "hub")
    name = tiny_dataset()
    cfg = make_cfg(
        *("MODEL.META_ARCHITECTURE", "HuggingFaceSegmentor", NODE + "NAME", str(tmp_path / "hub")),
        *("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "OUTPUT_DIR", str(tmp_path / "out")),
        *("SOLVER.MAX_ITER", 2),
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert (tmp_path / "out" / "model_final.pth").is_file()
    results = Trainer.test(cfg, trainer.model)
    assert "sparse_refine" in results
