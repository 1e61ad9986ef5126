# SPDX-License-Identifier: Apache-2.0
"""Models of transformers: the same numbers as by hand, every family, what the processor says."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sparse_refine import HuggingFaceSegmentor, SparseRefine
from sparse_refine.base import build_base
from sparse_refine.inference.loading import load_model
from sparse_refine.modeling.hugging_face import query_scores
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

K = 3
NODE = "MODEL.HUGGING_FACE."
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def swin():
    return transformers.SwinConfig(
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=STAGES,
    )


def vit(**options):
    return {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 64,
        "patch_size": 16,
        "num_labels": K,
        **options,
    }


def queries(**options):
    return {
        "num_queries": 21,  # more than are summed at once
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "encoder_feedforward_dim": 16,
        "dim_feedforward": 16,
        "num_labels": K,
        **options,
    }


def segformer_config(**options):
    return transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        sr_ratios=[2, 2, 1, 1],
        decoder_hidden_size=16,
        **{"num_labels": K, **options},
    )


def mask2former_config():
    return transformers.Mask2FormerConfig(
        backbone_config=swin(), **queries(hidden_dim=32, feature_size=32, mask_feature_size=32)
    )


def maskformer_config():
    detr = transformers.DetrConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=7,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=transformers.ResNetConfig(),
    )
    return transformers.MaskFormerConfig(
        backbone_config=swin(),
        decoder_config=detr,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=K,
    )


def oneformer_config():
    return transformers.OneFormerConfig(
        backbone_config=swin(),
        **queries(hidden_dim=32, conv_dim=32, mask_dim=32, text_encoder_width=16),
    )


def upernet_config():
    backbone = transformers.ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], out_features=STAGES
    )
    return transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        auxiliary_in_channels=16,
        auxiliary_channels=8,
        pool_scales=[1, 2],
        num_labels=K,
    )


SEMANTIC = {
    "beit": lambda: transformers.BeitConfig(
        **vit(out_indices=[0, 1, 2, 3], use_relative_position_bias=True, auxiliary_channels=8)
    ),
    "dpt": lambda: transformers.DPTConfig(
        **vit(
            backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8
        )
    ),
    "mobilenet_v2": lambda: transformers.MobileNetV2Config(num_labels=K, depth_multiplier=0.35),
    "mobilevit": lambda: transformers.MobileViTConfig(num_labels=K, hidden_sizes=[24, 32, 40]),
    "segformer": segformer_config,
    "upernet": upernet_config,
}
UNIVERSAL = {
    "eomt": lambda: transformers.EomtConfig(**vit(num_blocks=2, num_queries=7)),
    "mask2former": mask2former_config,
    "maskformer": maskformer_config,
    "oneformer": oneformer_config,
}
PROCESSORS = {
    "beit": "BeitImageProcessor",
    "dpt": "DPTImageProcessor",
    "eomt": "EomtImageProcessor",
    "mask2former": "Mask2FormerImageProcessor",
    "maskformer": "MaskFormerImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    "mobilevit": "MobileViTImageProcessor",
    "oneformer": "OneFormerImageProcessor",
    "segformer": "SegformerImageProcessor",
    "upernet": "SegformerImageProcessor",
}


def write_tokenizer(folder):
    """A vocabulary that spells letters: enough for CLIP's tokenizer."""
    letters = "acdehikmnst"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    folder.mkdir(exist_ok=True)
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[]
    )
    tokenizer.save_pretrained(folder)


def saved(folder, config, processor=True, **processor_options):
    """As the hub has it: config, weights in safetensors, image processor."""
    kind = config.model_type
    auto = "SemanticSegmentation" if kind in SEMANTIC else "UniversalSegmentation"
    model = getattr(transformers, f"AutoModelFor{auto}").from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "bias" not in name and "norm" not in name:  # sure of some pixels
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    if processor:
        getattr(transformers, PROCESSORS[kind])(**processor_options).save_pretrained(folder)
    if kind == "oneformer":
        write_tokenizer(Path(folder))
    return model


def image_of(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def run(model, image, **item):
    with torch.inference_mode():
        (output,) = model.eval()([{"image": image, **item}])
    return output["sem_seg"]


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


# ---- every family --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SEMANTIC, *UNIVERSAL])
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


# ---- what a config and a processor say -----------------------------------------------------------


def hugging_face(make_cfg, *options):
    return build_base(
        make_cfg("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "HuggingFaceSegmentor", *options)
    )


def test_a_model_described_in_yaml(make_cfg, tmp_path):
    text = """
MODEL:
  HUGGING_FACE:
    CONFIG:
      model_type: mask2former
      backbone_config: {model_type: swin, embed_dim: 12, depths: [1, 1, 1, 1],
        num_heads: [1, 2, 2, 4], window_size: 4,
        out_features: ["stage1", "stage2", "stage3", "stage4"]}
      hidden_dim: 32
      feature_size: 32
      mask_feature_size: 32
      encoder_layers: 1
      decoder_layers: 2
      num_attention_heads: 2
      num_queries: 7
"""
    (tmp_path / "c.yaml").write_text(text)
    cfg = make_cfg("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "HuggingFaceSegmentor")
    cfg.merge_from_file(str(tmp_path / "c.yaml"))
    base = build_base(cfg)
    assert base.universal and base.model.config.num_labels == K
    assert base.pixel_mean.flatten().tolist() == [127] * 3  # MODEL.PIXEL_MEAN: nobody else says
    assert run(base.eval(), image_of(64, 64)).shape == (K, 64, 64)


def test_without_a_processor_the_configs_mean_holds(make_cfg, tmp_path):
    saved(tmp_path, segformer_config(), processor=False)
    base = hugging_face(make_cfg, NODE + "NAME", str(tmp_path))
    assert base.pixel_std.flatten().tolist() == [64] * 3
    saved(tmp_path, segformer_config(), image_mean=[0.5] * 3, rescale_factor=1 / 127.5)
    base = hugging_face(make_cfg, NODE + "NAME", str(tmp_path))
    assert base.pixel_mean.flatten().tolist() == pytest.approx([63.75] * 3)


@pytest.mark.parametrize("names", [["b", "C", "a"], ["x", "y", "z"]])
def test_classes_take_the_data_sets_order(make_cfg, tmp_path, names, caplog):
    saved(tmp_path, segformer_config(id2label={0: "a", 1: "b", 2: "c"}))
    plain = hugging_face(make_cfg, NODE + "NAME", str(tmp_path))
    other = hugging_face(make_cfg, NODE + "NAME", str(tmp_path), "DATASETS.CLASS_NAMES", names)
    before, after = (run(model, image_of(64, 64)) for model in (plain, other))
    if names[0] == "b":
        assert torch.equal(before[[1, 2, 0]], after) and other.class_names == ["b", "c", "a"]
    else:
        assert torch.equal(before, after) and "'a' for 'x'" in caplog.text


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "NAME is '' and CONFIG has no 'model_type'"),
        ([NODE + "NAME", "no/such/folder/there"], "'no/such/folder/there'.*no config"),
        (["NAME", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5], "predicts 3 classes but .* is 5"),
        (["NAME", "MODEL.SPARSE_REFINE.BASE.SCORE_TYPE", "scores"], "returns logits.*'scores'"),
    ],
)
def test_what_does_not_fit(make_cfg, tmp_path, options, message):
    if options[:1] == ["NAME"]:
        saved(tmp_path, segformer_config())
        options = [NODE + "NAME", str(tmp_path), *options[1:]]
    cfg = make_cfg("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "HuggingFaceSegmentor", *options)
    with pytest.raises(ValueError, match=message):
        Trainer.build_model(cfg)


def test_no_segmentation_model(make_cfg, tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert' is no segmentation model.*segformer"):
        hugging_face(make_cfg, NODE + "NAME", str(tmp_path))


# ---- weights -------------------------------------------------------------------------------------


def encoder_only(folder):
    """What nvidia/mit-b5 is: a classifier's encoder, no segmentation head."""
    transformers.SegformerForImageClassification(segformer_config()).save_pretrained(folder)
    transformers.SegformerImageProcessor().save_pretrained(folder)


def test_a_frozen_base_starts_nothing_anew(make_cfg, tmp_path):
    encoder_only(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ tensors of Segformer.*decode_head"):
        hugging_face(make_cfg, NODE + "NAME", str(tmp_path))


def test_a_dense_model_does_and_is_a_base_afterwards(make_cfg, tmp_path, caplog):
    encoder_only(tmp_path / "hub")
    options = [NODE + "NAME", str(tmp_path / "hub"), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5]
    dense = Trainer.build_model(
        make_cfg("MODEL.META_ARCHITECTURE", "HuggingFaceSegmentor", *options)
    )
    assert "start from random numbers" in caplog.text and run(dense, image_of(40, 40)).shape[0] == 5
    weights = tmp_path / "model_final.safetensors"
    save_file(dense.state_dict(), weights)
    base = hugging_face(
        make_cfg,
        *options,
        *(NODE + "PRETRAINED", False, "MODEL.SPARSE_REFINE.BASE.WEIGHTS", str(weights)),
    )
    assert torch.equal(run(base, image_of(40, 40)), run(dense, image_of(40, 40)))


def test_a_dense_model_of_other_classes_gets_a_new_head(make_cfg, tmp_path, caplog):
    reference = saved(tmp_path, segformer_config())
    options = ["MODEL.META_ARCHITECTURE", "HuggingFaceSegmentor", NODE + "NAME", str(tmp_path)]
    model = Trainer.build_model(make_cfg(*options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5)).model
    assert "decode_head.classifier" in caplog.text
    assert model.decode_head.classifier.weight.shape[0] == 5
    name = "decode_head.linear_fuse.weight"
    assert torch.equal(model.state_dict()[name], reference.state_dict()[name])


def test_auxiliary_heads_are_left_out(tmp_path):
    """They cost time, nobody reads them, and DDP would wait for their gradients."""
    saved(tmp_path, upernet_config())
    model = HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    assert model.model.auxiliary_head is None


def test_weights_of_the_model_alone(make_cfg, tmp_path):
    reference = saved(tmp_path, segformer_config())
    weights = tmp_path / "alone.safetensors"
    save_file({name: tensor + 1 for name, tensor in reference.state_dict().items()}, weights)
    base = hugging_face(
        make_cfg,
        *(NODE + "NAME", str(tmp_path), NODE + "PRETRAINED", False),
        *("MODEL.SPARSE_REFINE.BASE.WEIGHTS", str(weights)),
    )
    name = "decode_head.classifier.bias"
    assert torch.equal(base.model.state_dict()[name], reference.state_dict()[name] + 1)


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["HARM"]),))


def test_pickled_weights_run_no_code(tmp_path, monkeypatch):
    reference = saved(tmp_path, segformer_config())
    (tmp_path / "model.safetensors").unlink()
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    model = HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    name = "decode_head.classifier.weight"
    assert torch.equal(model.model.state_dict()[name], reference.state_dict()[name])

    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    torch.save({**reference.state_dict(), "x": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises((pickle.UnpicklingError, RuntimeError, OSError, ValueError)):
        HuggingFaceSegmentor.from_pretrained(str(tmp_path))
    assert not (tmp_path / "harm").exists()


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
