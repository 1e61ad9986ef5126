# SPDX-License-Identifier: Apache-2.0
"""demo/demo.py on files that a test makes: every kind of input, what is written, and that nothing
is ever half written or written over."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine import model_zoo
from sparse_refine.checkpoint import save_weights
from sparse_refine.data import read_image, read_labels
from sparse_refine.engine import Trainer
from sparse_refine.files import write_whole
from sparse_refine.predictor import SparseRefinePredictor

DEMO = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "demo"
JOURNAL = ".sparse_refine_demo.jsonl"


@pytest.fixture
def part(monkeypatch):
    """load(module) of the demo's folder."""
    monkeypatch.syspath_prepend(DEMO)
    return importlib.import_module


@pytest.fixture
def model(tmp_path, make_cfg):
    """write(*options of the config) -> [--config-file, C, --weights, W], random ones."""

    def write(*options) -> list[str]:
        torch.manual_seed(0)
        cfg = make_cfg(*options)
        yaml, weights = tmp_path / "model.yaml", tmp_path / "model.safetensors"
        yaml.write_text(cfg.dump())
        save_weights(Trainer.build_model(cfg).state_dict(), str(weights))
        return ["--config-file", str(yaml), "--weights", str(weights)]

    return write


@pytest.fixture
def run(monkeypatch, tmp_path, part, model):
    """run(*arguments, model options) -> exit code, writing to tmp_path/out."""
    spec = importlib.util.spec_from_file_location("demo_of_images", DEMO / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back at the end

    def main(*arguments, options=()) -> int:
        try:
            first = [] if "--model" in arguments else model(*options)
            rest = ["--output", tmp_path / "out", *arguments]
            return demo.main([str(argument) for argument in (*first, *rest)])
        except SystemExit as error:  # argparse
            return error.code

    return main


def picture(seed: int = 0, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def save(path: Path, seed: int = 0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, **options)).save(path)
    return path


def video(path: Path, frames: int = 6, rate: float = 12.5, size=(48, 64)) -> Path:
    """Frames that turn from dark to light, so that their order can be told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "MJPG" if path.suffix == ".avi" else "mp4v"
    file = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*kind), rate, size[::-1])
    for index in range(frames):
        file.write(picture(0, size) // 8 + np.uint8(35 * index % 210))
    file.release()
    return path


def written(folder: Path) -> list[str]:
    """Files of the output but for the journal; hidden ones, unfinished ones, too."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != JOURNAL
    )


def predicted(model, path: Path) -> np.ndarray:
    _, config, _, weights = model()
    return SparseRefinePredictor(config, weights)(path)["labels"].numpy()


def test_every_kind_of_image(run, model, tmp_path):
    """Label maps are the predictor's labels, whatever the file is like."""
    folder = tmp_path / "in"
    folder.mkdir()
    image = picture()
    grey = image[..., 1]
    deep = image.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(folder / "rgb.jpg")
    Image.fromarray(image).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(image).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(np.dstack([image, grey])).save(folder / "rgba.png")
    Image.fromarray(np.dstack([grey, grey])).save(folder / "grey_alpha.png")
    Image.fromarray(deep[..., 0]).save(folder / "grey16.png")
    cv2.imwrite(str(folder / "rgb16.png"), deep)
    Image.fromarray(image).quantize(30).save(folder / "palette.png")
    Image.fromarray(grey > 100).save(folder / "bits.png")
    Image.fromarray(image).save(folder / "rgb_.bmp")
    Image.fromarray(image).save(folder / "rgb__.TIF")
    Image.fromarray(image).save(folder / "web.webp")
    save(folder / "narrow.png", size=(40, 1))
    save(folder / "one.png", size=(1, 1))
    assert run(folder) == 0
    sources = {path.stem: path for path in folder.iterdir()}
    assert {f"overlays/{stem}.jpg" for stem in sources} <= set(written(tmp_path / "out"))
    for stem, source in sources.items():
        labels = read_labels(str(tmp_path / "out" / "labels" / f"{stem}.png"))
        assert np.array_equal(labels, predicted(model, source)), stem
        assert read_image(str(tmp_path / "out" / "overlays" / f"{stem}.jpg")).shape[:2] == (
            labels.shape
        )
    assert read_labels(str(tmp_path / "out" / "labels" / "turned.png")).shape == (32, 24)


def test_all_outputs(run, model, tmp_path):
    source = save(tmp_path / "in" / "a.png")
    options = ["--show-why", "--probabilities", "--format", "png", "--budget", "0.1"]
    assert run(source, *options) == 0
    out = tmp_path / "out"
    assert written(out) == [
        "labels/a.png",
        "overlays/a.png",
        "panels/a.png",
        "probabilities/a.npz",
    ]
    _, config, _, weights = model()
    predictor = SparseRefinePredictor(config, weights)
    predictor.set_budget(0.1)
    output = predictor(source)
    with np.load(out / "probabilities" / "a.npz") as file:
        shares = file["probabilities"] / 65535
    assert np.abs(shares - predictor.probabilities(output).numpy()).max() <= 0.51 / 65535
    assert np.array_equal(read_labels(str(out / "labels" / "a.png")), output["labels"].numpy())
    # half of the class's colour, half of the image
    colors = np.array(predictor.metadata.stuff_colors)[output["labels"].numpy()]
    expected = 0.5 * colors + 0.5 * picture()
    assert np.abs(read_image(str(out / "overlays" / "a.png")) - expected).max() <= 0.5
    assert read_image(str(out / "panels" / "a.png")).shape[1] > 900


def test_more_than_256_classes(run, model, tmp_path):
    source = save(tmp_path / "a.png")
    options = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 300, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 65535]
    assert run(source, options=options) == 0
    path = tmp_path / "out" / "labels" / "a.png"
    assert path.read_bytes()[24] == 16
    assert np.array_equal(read_labels(str(path)), predicted(lambda: model(*options), source))


def test_folders_and_globs(run, tmp_path, part):
    find = part("predicting.inputs").find_inputs
    root = tmp_path / "in"
    for name in ("b.png", "a.jpg", "deep/c.PNG", ".hidden.png", "note.txt", "d[1].png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "clip.mp4").touch()
    out = root / "out"
    (out / "overlays").mkdir(parents=True)
    (out / "overlays" / "a.jpg").touch()

    def found(*arguments, recursive=False) -> list[str]:
        given = [str(root / argument) for argument in arguments]
        return [path.relative_to(root).as_posix() for path in find(given, out, recursive)]

    assert found("") == ["a.jpg", "b.png", "clip.mp4", "d[1].png"]
    assert found("", recursive=True) == ["a.jpg", "b.png", "clip.mp4", "d[1].png", "deep/c.PNG"]
    assert found("*.png", "a.jpg") == ["b.png", "d[1].png", "a.jpg"]
    assert found("**/*.PNG") == ["deep/c.PNG"]
    assert found("d[1].png", "b.png", "b.png", "") == ["d[1].png", "b.png", "a.jpg", "clip.mp4"]
    assert found("note.txt") == ["note.txt"]  # asked for by name: it is tried
    for nothing in ("gone.png", "*.gif", "deep/*.jpg"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            found(nothing)
    assert run(root / "gone.png") == 2


def test_same_names(run, model, tmp_path, part):
    """Two inputs of one name do not write over one another, in one run or in two."""
    root = tmp_path / "in"
    sources = [save(root / "x" / "a.png", 1), save(root / "y" / "a.png", 2)]
    sources += [save(root / "y" / "b.png", 3), save(root / "y" / "b.jpg", 4)]
    assert run(*sources) == 0
    names = ["b_jpg", "b_png", "x_a", "y_a"]
    out = tmp_path / "out"
    assert [path.stem for path in sorted((out / "labels").iterdir())] == names
    later = save(root / "z" / "b.png", 5)
    first = save(root / "w" / "x_a.png", 6)
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    assert run(later, first, sources[0]) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    for source, name in zip([*sources, later, first], ["x_a", "y_a", "b_png", "b_jpg", "b"]):
        labels = read_labels(str(out / "labels" / f"{name}.png"))
        assert np.array_equal(labels, predicted(model, source)), name
    labels = read_labels(str(out / "labels" / "x_a_png.png"))
    assert np.array_equal(labels, predicted(model, first))

    assign = part("predicting.inputs").assign_names
    paths = [Path(f"/r/{name}") for name in ("A.png", "a.png", "b_a.png", "b/a.png", "a_b/a.png")]
    named = list(assign(paths, {}).values())
    assert len({name.casefold() for name in named}) == len(paths)
    assert all("/" not in name for name in named)
    many = [Path(f"/{index}/a.png") for index in range(50)]
    assert len(set(assign(many, {"/gone": "0_a"}).values()) | {"0_a"}) == 51


def test_resume(run, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed, name in enumerate("abcd"):
        save(folder / f"{name}.png", seed)

    def touched(*arguments, **options) -> set[str]:
        """Outputs that a run has written."""
        times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
        assert run(folder, *arguments, **options) == 0
        return {
            path.relative_to(out).as_posix()
            for path in out.rglob("*.*")
            if path.stat().st_mtime_ns != times.get(path) and path.name != JOURNAL
        }

    assert touched("--resume") == set(written(out)) and len(written(out)) == 8
    assert touched("--resume") == set()
    (out / "labels" / "b.png").unlink()
    (out / "overlays" / "c.jpg").unlink()
    save(folder / "d.png", 7)  # another image of that name
    save(folder / "e.png", 8)
    capsys.readouterr()
    expected = {f"labels/{name}.png" for name in "bcde"}
    expected |= {f"overlays/{name}.jpg" for name in "bcde"}
    assert touched("--resume") == expected
    assert "1 of 5 are done already" in capsys.readouterr().out
    # what was not asked for before
    assert {f"panels/{name}.jpg" for name in "abcde"} < touched("--resume", "--show-why")
    assert touched("--resume") == set()
    # another budget, other weights: another answer
    assert len(touched("--resume", "--budget", "0.3")) == 10
    assert len(touched("--resume", options=["MODEL.SPARSE_REFINE.BASE.SCALE", 0.25])) == 10
    # a run that is no resumption does all again
    assert len(touched(options=["MODEL.SPARSE_REFINE.BASE.SCALE", 0.25])) == 10
    # killed while it wrote a line
    with open(out / JOURNAL, "a") as journal:
        journal.write('{"input": "')
    assert touched("--resume", options=["MODEL.SPARSE_REFINE.BASE.SCALE", 0.25]) == set()


def test_broken_files(run, tmp_path, capsys):
    """They are named at the end, and the others are done."""
    folder = tmp_path / "in"
    for seed, name in enumerate(("a.png", "m.png", "z.png")):
        save(folder / name, seed)
    (folder / "b_text.jpg").write_text("no image")
    (folder / "c_empty.png").touch()
    whole = save(folder / "d_cut.png", 9).read_bytes()
    (folder / "d_cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "e_film.mp4").write_bytes(b"no film" * 100)
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "f_float.tif")
    save(folder / "g_large.png", size=(30, 40))
    assert run(folder, "--max-megapixels", "0.001") == 1
    expected = [f"labels/{name}.png" for name in "amz"]
    assert written(tmp_path / "out") == expected + [f"overlays/{name}.jpg" for name in "amz"]
    said = capsys.readouterr()
    assert "3 of 9 done" in said.out
    failed = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    names = ["b_text.jpg", "c_empty.png", "d_cut.png", "e_film.mp4", "f_float.tif", "g_large.png"]
    assert len(failed) == 6
    for line, name in zip(failed, names):
        assert name in line
    assert "40 x 30" in failed[-1] and "--max-megapixels" in failed[-1]
    # once they are mended, a resumed run does those alone
    for name in names:
        (folder / name).unlink()
    save(folder / "b_text.jpg")
    assert run(folder, "--resume", "--max-megapixels", "0.001") == 0
    assert "3 of 4 are done already" in capsys.readouterr().out


def test_files_of_others_are_safe(run, tmp_path, capsys):
    """Labels drawn by hand, and the inputs themselves, are never written over."""
    out = tmp_path / "out"
    source = save(tmp_path / "in" / "a.png")
    hand = save(out / "labels" / "a.png", 3)
    content = hand.read_bytes()
    assert run(source) == 2
    assert "labels/a.png exist" in capsys.readouterr().err and hand.read_bytes() == content
    assert run(source, "--resume") == 2
    assert run(hand, "--overwrite", "--no-overlays") == 2  # its own output
    assert "is one of the inputs" in capsys.readouterr().err and hand.read_bytes() == content
    assert run(source, "--no-labels") == 0
    assert run(source) == 2  # the overlay is ours, the labels are not
    assert hand.read_bytes() == content
    os.link(source, out / "overlays" / "b.jpg")
    again = save(tmp_path / "in" / "b.jpg")
    assert run(again, source, "--no-labels", "--overwrite") == 2  # by another name
    assert run(source, "--overwrite") == 0
    assert hand.read_bytes() != content
    assert run(source) == 0  # now it is ours


def test_video(run, model, tmp_path, capsys):
    source = video(tmp_path / "in" / "film.avi")
    save(tmp_path / "in" / "still.png")
    assert run(source.parent, "--show-why") == 0
    out = tmp_path / "out"
    assert [name for name in written(out) if "film" in name] == [
        "overlays/film.mp4",
        "panels/film.mp4",
    ]
    assert "7/7" in capsys.readouterr().err  # frames and images
    capture, made = cv2.VideoCapture(str(source)), cv2.VideoCapture(str(out / "overlays/film.mp4"))
    assert made.get(cv2.CAP_PROP_FPS) == 12.5
    _, config, _, weights = model()
    predictor = SparseRefinePredictor(config, weights)
    colors = np.array(predictor.metadata.stuff_colors)
    for index in range(6):
        frame, overlay = capture.read()[1], made.read()[1]
        labels = predictor(frame, channel_order="BGR")["labels"].numpy()
        expected = 0.5 * frame + 0.5 * colors[labels][..., ::-1]
        assert overlay.shape == frame.shape
        assert np.abs(overlay - expected).mean() < 12, index  # what the encoder loses
    assert not made.read()[0]
    capture.release()
    made.release()
    assert run(source, "--resume", "--show-why") == 0
    assert "1 of 1 are done already" in capsys.readouterr().out
    assert run(source, "--max-frames", "2", "--no-labels") == 0
    made = cv2.VideoCapture(str(out / "overlays" / "film.mp4"))
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    made.release()
    assert run(source, "--resume", "--no-labels") == 0  # a part of it is not all of it
    made = cv2.VideoCapture(str(out / "overlays" / "film.mp4"))
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    made.release()
    assert run(source, "--no-overlays") == 2  # nothing of it would be written


def test_odd_video(run, tmp_path):
    """Encoders know even sizes alone: a row and a column are repeated, none is lost."""
    source = tmp_path / "odd.avi"
    frames = [picture(seed, (33, 47)) for seed in range(3)]
    file = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"FFV1"), 10, (47, 33))
    for frame in frames:
        file.write(frame)
    file.release()
    capture = cv2.VideoCapture(str(source))
    size = capture.read()[1].shape
    capture.release()
    assert run(source) == 0
    capture = cv2.VideoCapture(str(tmp_path / "out" / "overlays" / "odd.mp4"))
    found = capture.read()[1].shape
    capture.release()
    assert found == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)


def test_cut_video(run, tmp_path, capsys):
    """A film that ends long before it says is broken: nothing is written."""
    source = video(tmp_path / "film.avi", frames=40)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    assert run(source) == 1
    assert written(tmp_path / "out") == []
    assert "film.avi" in capsys.readouterr().err


def test_camera(run, part, tmp_path, monkeypatch, capsys):
    source = video(tmp_path / "film.avi", frames=4)
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda at: capture(str(source) if at == 3 else at))
    assert run("--webcam", "3", "--max-frames", "3", "--show-why") == 0
    overlay, panel = capsys.readouterr().out.split()
    made = capture(overlay)
    assert made.get(cv2.CAP_PROP_FPS) == 10
    assert 1 <= made.get(cv2.CAP_PROP_FRAME_COUNT) <= 30  # by the clock
    assert made.read()[1].shape == (48, 64, 3)
    assert Path(panel).is_file()

    # Ctrl-C is the way to end it: the video is whole
    camera = part("predicting.video")
    pictures, calls = camera.Pictures.__call__, []

    def stop_in_the_second(self, frame):
        calls.append(frame)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pictures(self, frame)

    monkeypatch.setattr(camera.Pictures, "__call__", stop_in_the_second)
    monkeypatch.setattr("time.strftime", lambda form: "webcam3_later.mp4")
    assert run("--webcam", "3") == 0
    made = capture(str(tmp_path / "out" / "overlays" / "webcam3_later.mp4"))
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) >= 1

    monkeypatch.setattr(cv2, "VideoCapture", lambda at: capture(str(tmp_path / "gone.avi")))
    assert run("--webcam", "0") == 1
    assert "camera 0 gave no frame" in capsys.readouterr().err


def test_display_needs_windows(run, tmp_path, monkeypatch, capsys):
    def headless(name):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "namedWindow", headless)
    assert run(video(tmp_path / "film.avi", frames=2), "--display") == 2
    assert "pip install opencv-python" in capsys.readouterr().err


def test_interrupted(run, part, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the middle of a file: none is half there, and --resume goes on."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed, name in enumerate("ab"):
        save(folder / f"{name}.png", seed)
    video(folder / "film.avi")
    save_picture, calls = Image.Image.save, []

    def stop(self, path, *arguments, **options):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save_picture(self, path, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", stop)
    assert run(folder) == 130
    assert written(out) == ["labels/a.png", "overlays/a.jpg"]
    assert "--resume goes on" in capsys.readouterr().err
    monkeypatch.undo()

    frames = part("predicting.video").VideoFile
    write = frames.write

    def stop_in_the_fourth(self, frame):
        if self._count == 3:
            raise KeyboardInterrupt
        write(self, frame)

    monkeypatch.setattr(frames, "write", stop_in_the_fourth)
    assert run(folder, "--resume", "--show-why") == 130
    assert not [name for name in written(out) if name.endswith(".mp4")]
    monkeypatch.setattr(frames, "write", write)
    assert run(folder, "--resume", "--show-why") == 0
    assert len(written(out)) == 2 * 3 + 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
def test_killed(run, tmp_path):
    """Killed without warning while it writes: the file that is there under its name is whole."""
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "a.png", 1)
    assert run(folder) == 0
    before = {name: (out / name).read_bytes() for name in written(out)}
    save(folder / "a.png", 2)
    save(folder / "b.png", 3)
    child = os.fork()
    if child == 0:

        def die(self, path, *arguments, **options):
            Path(path).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        Image.Image.save = die
        run(folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    visible = [name for name in written(out) if not Path(name).name.startswith(".")]
    assert {name: (out / name).read_bytes() for name in visible} == before
    assert run(folder, "--resume") == 0
    assert (out / "labels" / "b.png").is_file()
    assert (out / "labels" / "a.png").read_bytes() != before["labels/a.png"]


def test_full_disk_stops_the_run(run, part, tmp_path, monkeypatch, capsys):
    for seed, name in enumerate("abc"):
        save(tmp_path / "in" / f"{name}.png", seed)

    def full(path, write):
        if "labels" in str(path):
            raise OSError(28, "No space left on device", str(path))
        write_whole(path, write)

    monkeypatch.setattr("sparse_refine.pictures.write_whole", full)
    assert run(tmp_path / "in") == 1
    assert written(tmp_path / "out") == ["overlays/a.jpg"]
    said = capsys.readouterr().err
    assert said.count("failed: ") == 1 and "No space left" in said and "--resume" in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "rgbweed/gone"], "rgbweed/sparse_refine, "),
        (["--budget", "1.5"], "--budget 1.5: 0 to 1"),
        (["--alpha", "-1"], "--alpha -1"),
        (["--max-frames", "0"], "--max-frames 0"),
        (["--max-megapixels", "0"], "--max-megapixels 0"),
        (["--no-overlays", "--no-labels"], "nothing to write"),
        (["--webcam", "0"], "or --webcam N"),
        (["--device", "quantum"], "'quantum'"),
        (["--opts", "MODEL.NOTHING", "1"], "MODEL.NOTHING"),
        (["--opts", "MODEL.DEVICE"], "one KEY has no VALUE"),
        (["--model", "rgbweed/dense_low", "--weights", "w.pth"], "belong to --config-file"),
    ],
)
def test_wrong_command_lines(run, tmp_path, capsys, arguments, message):
    assert run(save(tmp_path / "a.png"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["MODEL: [", "MODEL:\n  NOTHING: 1\n", "just words", "\x00"])
def test_broken_config(run, tmp_path, capsys, content):
    yaml = tmp_path / "broken.yaml"
    yaml.write_text(content)
    arguments = ["--config-file", yaml, "--weights", yaml]
    assert run(save(tmp_path / "a.png"), *arguments) == 2
    assert "error: " in capsys.readouterr().err


def test_dense_models_refine_nothing(run, tmp_path, capsys):
    source = save(tmp_path / "a.png")
    dense = ["MODEL.META_ARCHITECTURE", "TinyBase"]
    assert run(source, "--show-why", options=dense) == 2
    assert run(source, "--budget", "0.1", options=dense) == 2
    assert capsys.readouterr().err.count("refines nothing") == 2
    assert run(source, "--probabilities", options=dense) == 0


def test_shipped_model(run, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    name = next(name for name in model_zoo.names() if name.endswith("sparse_refine"))
    assert run(save(tmp_path / "a.jpg"), "--model", name, "--show-why", "--device", "cpu") == 0
    assert written(tmp_path / "out") == ["labels/a.png", "overlays/a.jpg", "panels/a.jpg"]
