# SPDX-License-Identifier: Apache-2.0
"""Fixtures for code that a yaml names."""

import sys

import pytest
import yaml

from sparse_refine.modeling import trust

from .foreign import CODE


@pytest.fixture
def no_consent(monkeypatch):
    """No consent from outside, and none that stays."""
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.setattr(trust, "_trusted", set())
    yield
    for key in [key for key in sys.modules if key.startswith("sparse_refine_user_")]:
        del sys.modules[key]


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def file(tmp_path, canary):
    """A file of a stranger: `canary` is there when it has run."""
    path = tmp_path / "foreign.py"
    path.write_text(CODE.format(canary=str(canary)))
    return path


@pytest.fixture
def yaml_of(tmp_path):
    """write(content) -> path of a yaml."""

    def write(content):
        path = tmp_path / "foreign.yaml"
        path.write_text(yaml.safe_dump({"VERSION": 2, **content}))
        return str(path)

    return write
