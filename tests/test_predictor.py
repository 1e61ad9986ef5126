# SPDX-License-Identifier: Apache-2.0
"""SparseRefinePredictor: what it takes, what it returns, and what it says where it cannot."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from sparse_refine.data import build_test_loader
from sparse_refine.inference.loading import load_model
from sparse_refine.inference.predictor import SparseRefinePredictor
from sparse_refine.selector import BudgetSelector, EntropySelector, entropy
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer
from sparse_refine.visualization.panel import refinement_panel

DENSE = ["MODEL.META_ARCHITECTURE", "TinyBase"]
LABELS = ["MODEL.SPARSE_REFINE.OUTPUT", "labels"]


@pytest.fixture
def weights(tmp_path, make_cfg):
    """save(*options of the config) -> path of random weights of its model, always the same."""

    def save(*options) -> str:
        torch.manual_seed(0)
        path = tmp_path / "weights.safetensors"
        save_weights(Trainer.build_model(make_cfg(*options)).state_dict(), str(path))
        return str(path)

    return save


@pytest.fixture
def predictor(make_cfg, weights):
    """make(*options of the config) -> predictor."""
    return lambda *options: SparseRefinePredictor(make_cfg(*options), weights(*options))


@pytest.fixture
def image() -> np.ndarray:
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    noise = random.integers(0, 30, (48, 64, 3), dtype=np.uint8)
    return cv2.resize(blocks, (64, 48), interpolation=cv2.INTER_LINEAR) // 2 + noise


def same(first: dict, second: dict) -> bool:
    return torch.equal(first["labels"], second["labels"]) and torch.equal(
        first["entropy"], second["entropy"]
    )


def test_output(predictor, image):
    made = predictor()
    output = made(image)
    assert output["sem_seg"].shape == (3, 48, 64) and output["sem_seg"].is_floating_point()
    for key in ("labels", "coarse", "selected"):
        assert output[key].shape == (48, 64), key
    labels, coarse, selected = output["labels"], output["coarse"], output["selected"]
    assert torch.equal(labels.long(), output["sem_seg"].argmax(0))
    assert 0 < selected.sum() < selected.numel()
    assert torch.equal(labels[~selected], coarse[~selected])
    assert (labels != coarse).any()
    # the base by itself on the small image
    item = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
    low = made.model.coarse([item])[0].logits
    assert torch.equal(output["entropy"], entropy(low)) and output["entropy"].shape == (24, 32)
    assert torch.equal(coarse.long(), low.argmax(0).repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert output["refinement"].selected_fraction == selected.float().mean()
    assert output["panoptic_seg"]  # what else the base returns
    assert not made.model.training
    output["labels"][0, 0] = 1  # a user may change what is his: no inference tensors


def test_labels_alone(predictor, image):
    logits = predictor()(image)
    output = predictor(*LABELS)(image)
    assert "sem_seg" not in output
    assert same(output, logits)


def test_dense(predictor, image):
    output = predictor(*DENSE, "INPUT.SCALE", 0.5)(image)
    assert output["sem_seg"].shape == (3, 48, 64)
    assert torch.equal(output["labels"].long(), output["sem_seg"].argmax(0))
    assert not {"coarse", "entropy", "selected", "refinement"} & set(output)


@pytest.mark.parametrize("options", [[], [*DENSE, "INPUT.SCALE", 0.5]], ids=["refined", "dense"])
def test_predicts_what_an_evaluation_sees(make_cfg, weights, tiny_dataset, options):
    name = tiny_dataset(count=1)
    options = [*options, "DATASETS.TEST", (name,), "INPUT.FORMAT", "BGR"]
    cfg = make_cfg(*options, "MODEL.WEIGHTS", weights(*options))
    batch = next(iter(build_test_loader(cfg, name)))
    with torch.no_grad():
        expected = load_model(cfg)(batch)[0]
    output = SparseRefinePredictor(cfg)(batch[0]["file_name"])
    assert torch.equal(output["sem_seg"], expected["sem_seg"])


def test_budget(predictor, image):
    made = predictor("MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD", 0.2)
    own = made(image)
    for fraction in (0.0, 0.05, 1.0):
        made.set_budget(fraction)
        assert isinstance(made.model.selector, BudgetSelector)
        assert made(image)["selected"].sum() == round(fraction * 48 * 64)
    made.set_budget(None)
    assert isinstance(made.model.selector, EntropySelector)
    assert same(made(image), own)
    with pytest.raises(ValueError, match="1.5"):
        made.set_budget(1.5)
    assert same(made(image), own)
    with pytest.raises(ValueError, match="TinyBase.*refines nothing"):
        predictor(*DENSE).set_budget(0.1)


def test_channel_orders(make_cfg, weights, image):
    path = weights()
    rgb = SparseRefinePredictor(make_cfg(), path)
    bgr = SparseRefinePredictor(make_cfg("INPUT.FORMAT", "BGR"), path)
    flipped = np.ascontiguousarray(image[..., ::-1])
    expected = rgb(image)
    assert same(rgb(flipped, channel_order="BGR"), expected)
    assert same(bgr(flipped), expected)  # its network reads BGR: what it gets has red last
    assert same(bgr(image, channel_order="BGR"), expected)
    assert not same(rgb(flipped), expected)
    with pytest.raises(ValueError, match="'GBR'"):
        rgb(image, channel_order="GBR")


def test_arrays_and_files_agree(predictor, image, tmp_path):
    """Every kind of pixel that is normal, as an array and from a file."""
    made = predictor()
    grey = image[..., 1]
    alpha = np.dstack([image, image[..., 0]])
    deep = image.astype(np.uint16) * 257
    pairs = {
        "rgb.png": (image, Image.fromarray(image)),
        "grey.png": (grey, Image.fromarray(grey)),
        "grey1.png": (grey[..., None], Image.fromarray(grey)),
        "rgba.png": (alpha, Image.fromarray(alpha)),
        "grey16.png": (deep[..., 1], Image.fromarray(deep[..., 1])),
        "rgb.bmp": (image, Image.fromarray(image)),
        "rgb.tif": (image, Image.fromarray(image)),
    }
    for name, (array, picture) in pairs.items():
        picture.save(tmp_path / name)
        assert same(made(array), made(tmp_path / name)), name
    cv2.imwrite(str(tmp_path / "rgb16.png"), deep[..., ::-1])
    assert same(made(deep), made(str(tmp_path / "rgb16.png")))
    assert same(made(deep), made(image))
    assert same(made(np.dstack([deep, deep[..., 0]])), made(image))
    palette = Image.fromarray(image).quantize(200)
    palette.save(tmp_path / "palette.png")
    assert same(made(tmp_path / "palette.png"), made(np.asarray(palette.convert("RGB"))))


def test_exif_orientation(predictor, image, tmp_path):
    made = predictor()
    upright = made(image)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(image)))
    turned.save(tmp_path / "turned.png", exif=exif)
    assert turned.size == (48, 64)
    assert same(made(tmp_path / "turned.png"), upright)


@pytest.mark.parametrize("shape", [(1, 1), (37, 1), (1, 37), (33, 47)])
def test_sizes(predictor, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for options in ([], LABELS):
        made = predictor(*options, "MODEL.SPARSE_REFINE.COARSE_INTERPOLATION", "bilinear")
        made.set_budget(1.0)
        output = made(image)
        assert output["labels"].shape == shape and output["selected"].all()


def test_large(predictor):
    """12 megapixels, with the maps at their size."""
    made = predictor(*LABELS, "MODEL.SPARSE_REFINE.BASE.SCALE", 0.125)
    made.set_budget(0.001)
    output = made(np.zeros((3000, 4000, 3), np.uint8))
    assert output["labels"].shape == (3000, 4000)
    assert output["selected"].sum() == 12_000


def test_what_is_no_image(predictor, image, tmp_path):
    made = predictor()
    for wrong, message in (
        (image.astype(np.float32), "float32"),
        (image.astype(np.int64), "int64"),
        (image.tolist(), "list"),
        (Image.fromarray(image), "np.asarray"),
        (torch.from_numpy(image), "permute"),
        (None, "NoneType"),
    ):
        with pytest.raises(TypeError, match=message):
            made(wrong)
    for wrong in (image[..., :2], image[None], image[:0], image[:, :, :0], np.uint8(3)[None]):
        with pytest.raises(ValueError, match=r"of shape \("):
            made(wrong)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        made(tmp_path / "nowhere.png")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(OSError, match=r"text\.jpg"):
        made(tmp_path / "text.jpg")


def test_probabilities(predictor, image):
    for options in ([], DENSE):
        made = predictor(*options)
        output = made(image)
        shares = made.probabilities(output)
        assert torch.allclose(shares, output["sem_seg"].softmax(0))
    made = predictor(*LABELS)
    with pytest.raises(ValueError, match=r"OUTPUT to 'logits'"):
        made.probabilities(made(image))


def test_precision(predictor, make_cfg, weights, image):
    options = ["MODEL.SPARSE_REFINE.EXTRACTOR.PRECISION", "bfloat16"]
    made = SparseRefinePredictor(make_cfg(), weights(), opts=options)
    assert made.cfg.MODEL.SPARSE_REFINE.EXTRACTOR.PRECISION == "bfloat16"
    rough, fine = made(image)["sem_seg"], predictor()(image)["sem_seg"]
    assert not torch.equal(rough, fine)
    assert (rough.argmax(0) == fine.argmax(0)).float().mean() > 0.95


def test_config_from_yaml_and_weights_of_the_config(make_cfg, weights, image, tmp_path):
    path = weights()
    cfg = make_cfg()
    expected = SparseRefinePredictor(cfg, path)(image)
    assert cfg.MODEL.WEIGHTS == "" and not cfg.is_frozen()  # the caller's stays as it was
    yaml = tmp_path / "config.yaml"
    yaml.write_text(make_cfg("MODEL.WEIGHTS", path).dump())
    assert same(SparseRefinePredictor(yaml)(image), expected)
    budget = ["MODEL.SPARSE_REFINE.SELECTOR.NAME", "BudgetSelector"]
    made = SparseRefinePredictor(str(yaml), opts=budget)
    assert isinstance(made.model.selector, BudgetSelector)
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is ''"):
        SparseRefinePredictor(cfg)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        SparseRefinePredictor(cfg, tmp_path / "gone.pth")
    with pytest.raises(ValueError, match=r"'rgbweed/gone' is no file.*rgbweed/sparse_refine"):
        SparseRefinePredictor("rgbweed/gone")


@pytest.mark.parametrize(
    "opts, kind, message",
    [
        (["MODEL.NOTHING", 1], KeyError, r"Non-existent config key: MODEL\.NOTHING"),
        (["SEED", 1, "MODEL.DEVICE"], ValueError, "one KEY has no VALUE"),
        (["SEED", "many"], ValueError, "SEED"),
    ],
)
def test_bad_pairs_of_a_config(make_cfg, opts, kind, message):
    """As those of a yaml: engine.load_config."""
    with pytest.raises(kind, match=message):
        SparseRefinePredictor(make_cfg(), opts=opts)


def test_devices(make_cfg, weights, image):
    made = SparseRefinePredictor(make_cfg("MODEL.DEVICE", "cuda"), weights(), device="cpu")
    assert made.model.device.type == "cpu" and made(image)["labels"].device.type == "cpu"
    if not torch.cuda.is_available():
        anywhere = SparseRefinePredictor(make_cfg("MODEL.DEVICE", "cuda"), weights())
        assert anywhere.cfg.MODEL.DEVICE == "cpu"
        with pytest.raises(ValueError, match="'cuda'.*0 GPUs"):
            SparseRefinePredictor(make_cfg(), weights(), device="cuda")
    with pytest.raises(ValueError, match="'quantum'"):
        SparseRefinePredictor(make_cfg(), weights(), device="quantum")


def test_metadata(make_cfg, weights, tiny_dataset):
    path = weights()
    made = SparseRefinePredictor(make_cfg(), path).metadata
    assert made.stuff_classes == ["class 0", "class 1", "class 2"]
    assert len({tuple(color) for color in made.stuff_colors}) == 3
    name = tiny_dataset(count=1)
    made = SparseRefinePredictor(make_cfg("DATASETS.TEST", (name,)), path).metadata
    assert made.stuff_classes == ["soil", "crop", "weed"] and len(made.stuff_colors) == 3
    assert not hasattr(MetadataCatalog.get(name), "stuff_colors")  # the catalog's is not touched
    own = ["DATASETS.CLASS_NAMES", ["a", "b", "c"], "DATASETS.TEST", ("camvid_val",)]
    made = SparseRefinePredictor(make_cfg(*own), path).metadata  # CamVid has 11 classes
    assert made.stuff_classes == ["a", "b", "c"]
    made = SparseRefinePredictor(make_cfg("DATASETS.TEST", ("rgbweed_test",)), path).metadata
    assert made.stuff_colors == MetadataCatalog.get("rgbweed_test").stuff_colors
    assert made.ignore_label == 255


def test_photograph(datasets_root, tmp_path, monkeypatch):
    """The shipped refiner on a real photograph, from another working directory."""
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    made = SparseRefinePredictor("rgbweed/sparse_refine", device="cpu")
    made.set_budget(0.02)
    output = made(datasets_root / "rgbweed" / "images" / "IMG_3473.jpg")
    assert output["labels"].shape == (2448, 3264)
    assert output["selected"].sum() == round(0.02 * 2448 * 3264)
    truth = np.asarray(Image.open(datasets_root / "rgbweed" / "labels" / "IMG_3473.png"))
    right = {key: (output[key].numpy() == truth).mean() for key in ("coarse", "labels")}
    assert 0.95 < right["coarse"] < right["labels"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(make_cfg, weights, image):
    path = weights()
    output = SparseRefinePredictor(make_cfg(), path, device="cuda")(image)
    expected = SparseRefinePredictor(make_cfg(), path)(image)
    for key in ("sem_seg", "labels", "coarse", "entropy", "selected"):
        assert output[key].device.type == "cuda", key
    assert (output["labels"].cpu() == expected["labels"]).float().mean() > 0.99
    metadata = SparseRefinePredictor(make_cfg(), path).metadata
    assert refinement_panel(image, output["refinement"], metadata).dtype == np.uint8
