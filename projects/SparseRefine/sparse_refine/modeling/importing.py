# SPDX-License-Identifier: Apache-2.0
"""Code that a yaml names: other Detectron2 projects, and models in a user's own files.

Importing runs that code: such a config has to be trusted as a program is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

# Compiled operators that Mask2Former and its kin import at the top. For deformable attention they
# have a fallback in PyTorch; the others serve evaluators that nothing here uses.
_COMPILED = ("detectron2._C", "MultiScaleDeformableAttention")


def import_object(path: str, key: str) -> Any:
    """What `path` names: "package.module:name" or "path/to/file.py:name".

    A file's path is relative to the working directory; a file is imported once, however many names
    are taken from it. `key` is the config key, for messages.

    Raises:
        ValueError: `path` has another form.
        FileNotFoundError: there is no such file.
        ImportError: there is no such module, or the module has no such name.
    """
    module, separator, name = path.rpartition(":")
    if not separator or not module or not name:
        raise ValueError(
            f"{key} is {path!r}: 'package.module:name' or 'path/to/file.py:name' is needed"
        )
    found = _import_module(module, key)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ImportError(f"{key} is {path!r}, but {module} has no {part!r}")
        found = getattr(found, part)
    return found


def import_projects(cfg: CfgNode, projects: list[str]) -> None:
    """Import Detectron2 projects and let them declare their keys in `cfg`, in place.

    Each is a module, whose import registers its architectures, or "module:function", where
    `function(cfg)` declares its keys. Call this before `add_sparse_refine_config`: projects also
    set defaults of keys that they share with this one.

    Raises:
        FileNotFoundError: a project is a file that does not exist.
        ImportError: a project is not on the path, or fails to import.
        ValueError: a name of another form.
    """
    for project in projects:
        with _without_compiled_operators():
            if ":" in project:
                import_object(project, "PROJECTS")(cfg)
            else:
                _import_module(project, "PROJECTS")


def named_projects(path: str, opts: list[str] | tuple[str, ...] = ()) -> list[str]:
    """PROJECTS of the yaml at `path` with the KEY VALUE pairs `opts`, read before any key is
    declared.

    Raises:
        ValueError: the file holds no keys and values.
    """
    content = CfgNode.load_yaml_with_base(str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys and values of a config")
    cfg = CfgNode({"PROJECTS": content.get("PROJECTS", [])})
    for key, value in zip(opts[0::2], opts[1::2]):
        if key == "PROJECTS":
            cfg.merge_from_list([key, value])
    return list(cfg.PROJECTS)


def _import_module(name: str, key: str) -> types.ModuleType:
    if name.endswith(".py"):
        return _import_file(Path(name), key)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{key} names {name!r}, which does not import: {error}. Install it, or put the folder "
            "that holds it (a checkout of the project) on PYTHONPATH"
        ) from error


def _import_file(path: Path, key: str) -> types.ModuleType:
    """A user's file as a module, the same one at every call: its registrations run once."""
    if not path.is_file():
        raise FileNotFoundError(f"{key} names {str(path)!r}, which is no file")
    path = path.resolve()
    name = f"sparse_refine_user_{path.stem}"
    module = sys.modules.get(name)
    if module is not None and module.__file__ != str(path):
        name = f"{name}_{abs(hash(str(path)))}"  # two files of one name
        module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


class _NotCompiled(types.ModuleType):
    """Stands for a compiled module while a project is imported; using it is an AttributeError."""

    def __getattr__(self, name: str):
        raise AttributeError(f"{self.__name__} is not compiled, so it has no {name!r}")


@contextmanager
def _without_compiled_operators():
    """Let modules that import compiled operators be imported where those are missing."""
    stubs = {}
    for name in _COMPILED:
        try:
            importlib.import_module(name)
        except ImportError:
            stubs[name] = _NotCompiled(name)
    sys.modules.update(stubs)
    try:
        yield
    finally:  # other code asks by importing them whether they are there
        for name in stubs:
            sys.modules.pop(name, None)
