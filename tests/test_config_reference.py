# SPDX-License-Identifier: Apache-2.0
"""The key tables of docs/configuration.md against the declarations, and what writes them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from sparse_refine import add_sparse_refine_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def reference(monkeypatch):
    """tools/config_reference.py, imported."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("config_reference")


def leaves(node: CfgNode, prefix: str = "") -> dict:
    found = {}
    for key, value in node.items():
        if isinstance(value, CfgNode) and (value or not value.is_new_allowed()):
            found.update(leaves(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def test_key_reference_is_up_to_date(reference):
    text = reference.PAGE.read_text()
    assert reference.updated(text) == text, "run python tools/config_reference.py"


def test_key_reference_has_every_key_with_its_default(reference):
    cfg = get_cfg()
    before = leaves(cfg)
    add_sparse_refine_config(cfg)
    missing = object()  # declared here, or with another default than Detectron2's
    declared = {n: v for n, v in leaves(cfg).items() if before.get(n, missing) != v}
    keys = [k for s in reference.read_declarations() for k in s.keys]
    assert sorted(key.name for key in keys) == sorted(declared)
    for key in keys:
        assert eval(key.default) == declared[key.name], key.name
        assert key.meaning, key.name


DECLARATIONS = '''
from .family import add_family_config
from .families import add_last_config, others


def add_sparse_refine_config(cfg):
    """Doc."""
    # ---- parts ----
    # A share, 0..1,
    # of something; or COUNT.
    cfg.MODEL.SHARE = 0.5
    cfg.MODEL.COUNT = -1
    cfg.MODEL.METHOD = node = CN()
    # One part.
    node.PART = CN()
    node.PART.NAME = "a|b"  # its name
{more}
    add_family_config(node.PART)
    for add_config in (others.add_other_config, add_last_config):
        add_config(cfg)
'''
FAMILY = """
def add_family_config(part):
    # ---- a family ----
    part.FAMILY = own = CN()
    own.SIZE = 1  # of it
"""
OTHERS = """
def add_other_config(cfg):
    model = cfg.MODEL
    # An {0} one.
    model.{0} = True
"""


@pytest.fixture
def declarations(tmp_path):
    """make(more) -> config.py of a package with families of keys."""

    def make(more: str = "") -> Path:
        (tmp_path / "families").mkdir()
        texts = {
            "config.py": DECLARATIONS.format(more=more),
            "family.py": FAMILY,
            "families/__init__.py": "from .last import add_other_config as add_last_config\n",
            "families/others.py": OTHERS.format("OTHER"),
            "families/last.py": OTHERS.format("LAST"),
        }
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        return tmp_path / "config.py"

    return make


def test_key_reference_reads_comments(reference, declarations):
    sections = reference.read_declarations(declarations())
    keys = {key.name: key for section in sections for key in section.keys}
    assert keys["MODEL.SHARE"].meaning == "A share, 0..1, of something; or COUNT."
    assert keys["MODEL.COUNT"].meaning == keys["MODEL.SHARE"].meaning
    assert (keys["MODEL.METHOD.PART.NAME"].meaning, sections[1].text) == ("its name", "One part.")
    text = reference.render(sections)
    assert "## Parts" in text and "### `MODEL.METHOD.PART`" in text and '`"a|b"`' in text


def test_key_reference_reads_the_families_that_are_called(reference, declarations):
    sections = reference.read_declarations(declarations())
    family = {key.name: key.meaning for key in sections[-1].keys}
    assert sections[-1].title == "a family"
    assert family == {
        "MODEL.METHOD.PART.FAMILY.SIZE": "of it",
        "MODEL.OTHER": "An OTHER one.",
        "MODEL.LAST": "An LAST one.",
    }


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("    node.PART.SIZE = 3\n", r"MODEL\.METHOD\.PART\.SIZE"),
        ("    print()\n", "no function print"),
        ("    if node:\n        pass\n", r"config\.py, line \d+: a key or a call"),
    ],
)
def test_key_reference_refuses_what_it_cannot_explain(reference, declarations, more, match):
    page = f"{reference.BEGIN}\n{reference.END}\n"
    with pytest.raises(ValueError, match=match):
        reference.updated(page, declarations(more))


def test_key_reference_needs_its_place_in_the_page(reference):
    with pytest.raises(ValueError, match="needs one line"):
        reference.updated("nothing")
