# SPDX-License-Identifier: Apache-2.0
"""What the predict command refuses, before it writes anything."""

from __future__ import annotations

import pytest


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
def test_wrong_command_lines(run, tmp_path, capsys, arguments, message, save):
    assert run(save(tmp_path / "a.png"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["MODEL: [", "MODEL:\n  NOTHING: 1\n", "just words", "\x00"])
def test_broken_config(run, tmp_path, capsys, content, save):
    yaml = tmp_path / "broken.yaml"
    yaml.write_text(content)
    arguments = ["--config-file", yaml, "--weights", yaml]
    assert run(save(tmp_path / "a.png"), *arguments) == 2
    assert "error: " in capsys.readouterr().err


def test_dense_models_refine_nothing(run, tmp_path, capsys, save):
    source = save(tmp_path / "a.png")
    dense = ["MODEL.META_ARCHITECTURE", "TinyBase"]
    assert run(source, "--show-why", options=dense) == 2
    assert run(source, "--budget", "0.1", options=dense) == 2
    assert capsys.readouterr().err.count("refines nothing") == 2
    assert run(source, "--probabilities", options=dense) == 0


def test_outputs_that_are_no_folder(run, tmp_path, capsys, save):
    source = save(tmp_path / "a.png")
    for output in (source, source / "below"):
        assert run(source, "--output", output) == 2
        assert f"--output is '{output}', and {source} is a file" in capsys.readouterr().err


def test_a_folder_into_itself(run, tmp_path, capsys, save):
    """What is in the output folder is taken for the program's own."""
    save(tmp_path / "photos" / "a.png")
    for output in (tmp_path / "photos", tmp_path):
        assert run(tmp_path / "photos", "--output", output) == 2
        assert "choose another --output" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]


def test_home_in_outputs(run, tmp_path, save, monkeypatch):
    """A shell leaves `--output=~/results` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(save(tmp_path / "a.png"), "--output", "~/results") == 0
    assert (tmp_path / "results" / "labels" / "a.png").is_file()
    assert not (tmp_path / "~").exists()
