# SPDX-License-Identifier: Apache-2.0
"""The web demo without a browser: what its server does with images, good ones and bad ones."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

# of gradio 6.31 with pandas 3
pytestmark = pytest.mark.filterwarnings("ignore:.*(silent_downcasting|copy keyword)")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "projects" / "SparseRefine" / "demo" / "web_demo.py"


def png(image: np.ndarray) -> bytes:
    return saved(Image.fromarray(image), "PNG")


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def field(height: int = 60, width: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises what its few bytes of zeros could unpack to."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


# ---- what it is for


def test_upload_is_refined(client):
    status, paths = client.upload(png(np.asarray(field())))
    assert status == 200
    assert client.drop(paths[0])["success"]
    parts = client.refine()
    assert not parts["message"]["visible"]
    for name in ("whole", "close"):
        before, after = (client.picture(picture) for picture in parts[name])
        assert before.size == after.size == {"whole": (80, 60), "close": (160, 120)}[name]
        assert before.tobytes() != after.tobytes()
    assert client.picture(parts["entropy"]).size == (80, 60)
    assert client.picture(parts["selected"]).size == (80, 60)
    assert "80 x 60" in parts["numbers"] and "25.0 %" in parts["numbers"]
    assert "scatter" in parts["numbers"]
    assert "crop &lt;b&gt;" in parts["legend"] and "<b>" not in parts["legend"]


def test_base_runs_once_an_image_and_nothing_runs_for_the_opacity(client, web):
    model = web.runner.predictors["tiny"].model
    base = model.coarse.base.base
    runs = []
    hook = model.extractor.register_forward_hook(lambda *_: runs.append(True))
    try:
        client.example()
        client.refine(30)  # may be kept, of another test
        before = len(base.calls)
        changed = client.refine(20)
        assert len(base.calls) == before and len(runs) >= 1
        assert changed["numbers"].count("kept of an earlier run") == 2
        count = len(runs)
        faint = client.refine(20, opacity=10)
        assert len(base.calls) == before and len(runs) == count
        assert faint["numbers"] == changed["numbers"] and faint["whole"] != changed["whole"]

        kept = web.runner.run(web.example, "tiny", 0.3)
        other = client.upload(png(np.asarray(field(50, 70))))[1][0]
        client.drop(other)
        client.refine(30)
        assert len(base.calls) == before + 1
        fresh = web.runner.run(web.example, "tiny", 0.3)
        assert len(base.calls) == before + 2
        assert kept.coarse_kept and not fresh.coarse_kept
        assert np.array_equal(kept.labels, fresh.labels)
        assert np.array_equal(kept.selected, fresh.selected)
    finally:
        hook.remove()


def test_budget_of_the_model_and_its_own_selector(client):
    chosen = client.event("model.input", ["by_itself"])["output"]["data"]
    assert chosen[1]["value"] and chosen[1]["visible"]
    chosen = client.event("model.input", ["tiny"])["output"]["data"]
    assert chosen[0] == 25 and not chosen[1]["visible"]
    client.example()
    own = client.refine(0, "by_itself", by_itself=True)
    assert "81.4 %" in own["numbers"]  # all of 128 x 96, were it not for the most at once
    assert "More pixels were asked for" in own["message"]["value"]
    assert "0.0 %" in client.refine(0, "by_itself")["numbers"]


def test_more_than_the_server_refines_at_once_is_cut(client, web):
    image = np.asarray(field(200, 200))
    client.drop(client.upload(png(image))[1][0])
    parts = client.refine(50)
    assert "More pixels were asked for" in parts["message"]["value"]
    result = web.runner.run(web.runner._result[0][0][0], "tiny", 0.5)
    assert result.cut and result.selected.sum() == web.runner.limits.refined_pixels == 10_000


@pytest.mark.parametrize("percent", [-5, 1e9, "many", None, [], {"a": 1}])
def test_settings_that_no_slider_gives(client, percent):
    client.example()
    client.event("budget.release", [None, "tiny", percent, False, 50])
    client.event("budget.release", [None, "no such model", 10, False, 50])
    client.example(10**9)
    assert "128 x 96" in client.refine()["numbers"]  # it lives


# ---- bad uploads


def bands_of_16_bits(image):
    """A TIFF that Pillow does not open."""
    file, pixels = io.BytesIO(), np.asarray(image).astype(np.uint16) * 257
    tifffile.imwrite(file, pixels, photometric="minisblack", planarconfig="contig")
    return file.getvalue()


ANIMATION = saved(field(), "GIF", save_all=True, append_images=[field().rotate(90)])
EXIF = Image.Exif()
EXIF[0x0112] = 6
GOOD = {
    "exif.jpg": (saved(field(), "JPEG", exif=EXIF), "60 x 80"),
    "cmyk.jpg": (saved(field().convert("CMYK"), "JPEG"), "80 x 60"),
    "grey16.png": (png(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13), "80 x 60"),
    "alpha.webp": (saved(field().convert("RGBA"), "WEBP"), "80 x 60"),
    "animation.gif": (ANIMATION, "80 x 60"),
    "bilevel.tif": (saved(field().convert("1"), "TIFF"), "80 x 60"),
    "bands.tif": (bands_of_16_bits(field()), "80 x 60"),
}
BAD = {
    "zero.png": (b"", "is empty"),
    "text.png": (b"no image", "is not an image of a kind"),
    "archive.jpg": (b"PK\x03\x04" + bytes(99), "is not an image of a kind"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not an image of a kind"),
    "film.webp": (b"RIFF\x00\x00\x00\x00AVI LIST", "is not an image of a kind"),
    "drawing.svg": (b'<?xml version="1.0"?><svg onload="alert(1)"/>', "is a drawing (SVG)"),
    "drawing.png": (b'<svg><image href="file:///etc/passwd"/></svg>', "is a drawing (SVG)"),
    "cut.jpg": (saved(field(), "JPEG")[:900], "is damaged or cut short"),
    "cut.png": (saved(field(), "PNG")[:900], "is damaged or cut short"),
    "noise.tif": (b"II*\x00" + bytes(range(256)), "is damaged or cut short"),
    "bomb.png": (png_of_size(60_000, 60_000), "Nothing of it was decoded"),
    "large.png": (png_of_size(1000, 1000), "1000 x 1000 pixels"),
    "thin.png": (saved(field(3, 400), "PNG"), "at least 16"),
    "float.tif": (saved(Image.fromarray(np.ones((60, 80), np.float32)), "TIFF"), "floating point"),
    "<img src=x onerror=alert(1)>.png": (b"no", "is not an image of a kind"),
}


@pytest.mark.parametrize("name", GOOD)
def test_images_of_every_kind(client, name):
    content, size = GOOD[name]
    client.drop(client.upload(content, name)[1][0])
    parts = client.refine()
    assert size in parts["numbers"]
    if name == "animation.gif":
        assert "its first picture" in parts["message"]["value"]


@pytest.mark.parametrize("name", BAD)
def test_bad_upload_gets_a_message(client, web, name):
    content, reason = BAD[name]
    status, paths = client.upload(content, name)
    assert status == 200
    client.drop(paths[0])
    parts = client.refine()
    assert parts["message"]["visible"] and "sr-problem" in parts["message"]["value"]
    assert reason in parts["message"]["value"]
    assert str(web.folder) not in parts["message"]["value"]
    assert "<img" not in parts["message"]["value"]
    assert parts["whole"] is parts["selected"] is None and parts["numbers"] == ""
    client.example()
    assert "128 x 96" in client.refine()["numbers"]  # it lives


# ---- the program


def run(*arguments: str, **options):
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.slow
def test_program_serves_and_leaves_nothing_behind(tmp_path, open_client):
    pytest.importorskip("gradio")
    command = [sys.executable, str(PROGRAM), "--model", "rgbweed/sparse_refine", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "GRADIO_ALLOWED_PATHS": "/"}
    with subprocess.Popen(
        [*command, "--examples", "0"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("http://127.0.0.1:"):
                    break
            else:
                raise AssertionError("".join(lines))
            client = open_client(line.split()[0])
            client.drop(client.upload(png(np.asarray(field(120, 160))))[1][0])
            parts = client.refine(10, "rgbweed/sparse_refine")
            assert "160 x 120" in parts["numbers"]
            assert client.request("GET", "/gradio_api/file=/etc/passwd")[0] == 403
            assert list(tmp_path.glob("sparse_refine_web_*/*"))
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not list(tmp_path.glob("sparse_refine_web_*"))


def test_program_says_what_is_wrong_with_its_arguments(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--port", str(taken.getsockname()[1]))
    assert done.returncode != 0 and "give another --port" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "more than 0" in run("--max-megapixels", "0").stderr
    assert "--config-file" in run("--weights", "some.pth").stderr
    (tmp_path / "gradio.py").write_text("raise ImportError('no gradio')")
    done = run("--port", "0", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert "make web" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1"])
def test_hosts_have_names_and_addresses(web, host):
    from web_app import server

    with server.listen(host, 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host, port", [("no.such.host.invalid", 0), ("a" * 70, 0), ("", 0),
                                        ("1.2.3.4.5", 0), ("localhost", 65536)])  # fmt: skip
def test_hosts_and_ports_that_there_are_not(web, host, port):
    from web_app import server

    with pytest.raises(OSError, match=f"cannot listen on --host {host} --port {port}: .+; give"):
        server.listen(host, port)


def test_models_that_the_page_cannot_show(web):
    from web_app.runner import load_predictors

    with pytest.raises(ValueError, match="refines nothing"):
        load_predictors(["rgbweed/dense_low"], None, None)
    with pytest.raises(ValueError, match="no 'nowhere'"):
        load_predictors(["nowhere"], None, None)
    with pytest.raises(FileNotFoundError, match="absent.yaml"):
        load_predictors([], "absent.yaml", None)
