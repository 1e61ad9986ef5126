# SPDX-License-Identifier: Apache-2.0
"""Every family of transformers as a base: it refines, trains, and gets its own input."""

import pytest
import torch
import torch.nn.functional as F

from sparse_refine import HuggingFaceSegmentor
from sparse_refine.training.trainer import Trainer

from ..marks import slow_except
from .hugging_face import (
    NODE,
    SEMANTIC,
    UNIVERSAL,
    K,
    image_of,
    oneformer_config,
    run,
    saved,
    transformers,
)


@pytest.mark.parametrize("kind", slow_except([*SEMANTIC, *UNIVERSAL], "segformer", "mask2former"))
def test_family_refines_and_trains(tmp_path, make_cfg, kind):
    config = {**SEMANTIC, **UNIVERSAL}[kind]()
    saved(tmp_path, config)
    score_type = "logits" if kind in SEMANTIC else "scores"
    cfg = make_cfg(
        *("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "HuggingFaceSegmentor"),
        *("MODEL.SPARSE_REFINE.BASE.SCORE_TYPE", score_type, NODE + "NAME", str(tmp_path)),
        *("MODEL.SPARSE_REFINE.SELECTOR.NAME", "BudgetSelector"),
    )
    model = Trainer.build_model(cfg).eval()
    with torch.inference_mode():
        (output,) = model([{"image": image_of(150, 202)}])
    base = model.coarse.base
    assert output["sem_seg"].shape == (K, 150, 202) and output["sem_seg"].isfinite().all()
    assert base.score_type == score_type and base.class_names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert all(name.startswith("model.") for name in base.state_dict())

    base.requires_grad_(True).train()
    item = {"image": image_of(64, 64), "sem_seg": torch.randint(0, K, (64, 64))}
    item["sem_seg"][:8] = 255
    if kind in UNIVERSAL:
        with pytest.raises(ValueError, match="cannot be trained.*scores"):
            base([item])
        return
    loss = base([item, item])["loss_sem_seg"]
    loss.backward()
    assert loss.isfinite() and any(
        p.grad.abs().sum() > 0 for p in base.parameters() if p.grad is not None
    )


@pytest.mark.parametrize("kind", ["dpt", "eomt"])
def test_models_of_one_size_get_that_size(tmp_path, kind):
    saved(tmp_path, {**SEMANTIC, **UNIVERSAL}[kind]())
    model = HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    assert model.image_size == (64, 64)
    assert run(model, image_of(75, 101)).shape == (K, 75, 101)


def test_beit_is_padded_to_whole_patches(tmp_path):
    saved(tmp_path, SEMANTIC["beit"]())
    model = HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    image = image_of(75, 101)
    pixels = F.pad(image / 127.5 - 1, (0, 11, 0, 5))[None]  # BEiT's mean and std are 0.5
    with torch.inference_mode():
        logits = model.model(pixel_values=pixels).logits
    expected = F.interpolate(logits, (80, 112), mode="bilinear", align_corners=False)
    assert torch.allclose(run(model, image), expected[0, :, :75, :101], atol=1e-5)


def test_mobilevit_takes_bgr_without_normalisation(tmp_path):
    saved(tmp_path, SEMANTIC["mobilevit"]())
    model = HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    image = image_of(64, 64)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    inputs = processor(image, do_resize=False, do_center_crop=False, return_tensors="pt")
    assert torch.allclose(inputs["pixel_values"][0], image.flip(0) / 255, atol=1e-6)
    with torch.inference_mode():
        logits = model.model(**inputs).logits
    expected = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(run(model, image), expected, atol=1e-5)


def test_oneformer_is_told_its_task(tmp_path):
    saved(tmp_path, oneformer_config())
    model = HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert model.task_inputs.shape == (1, 77)
    text = tokenizer.decode(model.task_inputs[0], skip_special_tokens=True)
    assert "".join(text.split()) == "thetaskissemantic"
    assert "task_inputs" not in model.state_dict()
