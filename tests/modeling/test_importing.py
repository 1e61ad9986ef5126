# SPDX-License-Identifier: Apache-2.0
"""Names in a yaml that stand for code: modules, files, projects with keys of their own."""

import sys

import pytest

from sparse_refine.config import load_config
from sparse_refine.modeling.importing import import_object, named_projects

PROJECT = """
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

COUNT = [0]
COUNT[0] += 1


@META_ARCH_REGISTRY.register()
class {name}:
    pass


def add_config(cfg):
    cfg.MODEL.THEIRS = CfgNode({{"WIDTH": 3}})
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
"""


@pytest.fixture
def project(tmp_path, request):
    """A user's file that registers an architecture and declares keys."""
    file = tmp_path / "theirs.py"
    name = "".join(x for x in request.node.name if x.isalnum())
    file.write_text(PROJECT.format(name=name))
    yield file, name
    for key in [key for key in sys.modules if key.startswith("sparse_refine_user_")]:
        del sys.modules[key]


def test_names_of_modules_and_files(project):
    file, name = project
    assert import_object("torch.nn:Conv2d", "KEY").__name__ == "Conv2d"
    assert import_object("torch:nn.functional.relu", "KEY").__name__ == "relu"
    found = import_object(f"{file}:{name}", "KEY")
    assert found.__name__ == name
    assert import_object(f"{file}:{name}", "KEY") is found  # its registrations run once
    assert import_object(f"{file}:COUNT", "KEY") == [1]


def test_two_files_of_one_name(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"VALUE = {value}")
    assert [import_object(f"{tmp_path / x}/same.py:VALUE", "KEY") for x in "aba"] == [1, 2, 1]


@pytest.mark.parametrize(
    "path, error, message",
    [
        ("torch.nn", ValueError, r"KEY is 'torch.nn': 'package.module:name'"),
        (":x", ValueError, "KEY is ':x'"),
        ("no_such_package.here:x", ImportError, "'no_such_package.here'.*PYTHONPATH"),
        ("torch.nn:Nothing", ImportError, "torch.nn has no 'Nothing'"),
        ("no/such/file.py:x", FileNotFoundError, "KEY names 'no/such/file.py'"),
    ],
)
def test_what_cannot_be_imported(path, error, message):
    with pytest.raises(error, match=message):
        import_object(path, "KEY")


def test_a_file_that_fails_is_not_half_there(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("VALUE = 1\nraise RuntimeError('not yet')")
    with pytest.raises(RuntimeError, match="not yet"):
        import_object(f"{file}:VALUE", "KEY")
    file.write_text("VALUE = 2")
    assert import_object(f"{file}:VALUE", "KEY") == 2


def test_a_projects_keys_are_declared_before_the_yaml_is_read(project, tmp_path):
    file, name = project
    base = tmp_path / "base.yaml"
    base.write_text(f"PROJECTS: ['{file}:add_config']\nMODEL:\n  THEIRS:\n    WIDTH: 5\n")
    leaf = tmp_path / "leaf.yaml"
    leaf.write_text("_BASE_: base.yaml\nVERSION: 2\nMODEL:\n  DEVICE: cpu\n")
    cfg = load_config(str(leaf), ["MODEL.THEIRS.WIDTH", "7"], trust_code=True)
    assert cfg.MODEL.THEIRS.WIDTH == 7 and [f"{file}:add_config"] == cfg.PROJECTS
    assert cfg.SOLVER.BACKBONE_MULTIPLIER == 1.0  # shared keys: this project's default holds
    assert load_config(str(leaf)).MODEL.THEIRS.WIDTH == 5  # and again, in the same process


def test_projects_from_the_command_line(project, tmp_path):
    file, _ = project
    leaf = tmp_path / "leaf.yaml"
    leaf.write_text("VERSION: 2\n")
    opts = ["SEED", "1", "PROJECTS", f"['{file}:add_config']"]
    assert named_projects(leaf, opts) == [f"{file}:add_config"]
    assert load_config(str(leaf), opts).MODEL.THEIRS.WIDTH == 3


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no keys and values"),
        (b"- a\n", "holds no keys and values"),
        (b"\x89PNG\r\n", "is no text in UTF-8, so no yaml"),
    ],
)
def test_what_is_no_config(tmp_path, content, message):
    """`--config-file model_final.pth`, an image, or nothing."""
    (tmp_path / "given").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/given {message}"):
        load_config(str(tmp_path / "given"))
