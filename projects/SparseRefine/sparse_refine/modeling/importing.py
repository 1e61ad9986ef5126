# SPDX-License-Identifier: Apache-2.0
"""Code that a yaml names: other Detectron2 projects, and models in a user's own files.

Importing runs that code: trust.py says what a yaml may bring in.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
import typing
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from .trust import check_module, how_to_consent, tensors_only, trusts

# Compiled operators that Mask2Former and its kin import at the top. For deformable attention they
# have a fallback in PyTorch; the others serve evaluators that nothing here uses.
_COMPILED = ("detectron2._C", "MultiScaleDeformableAttention")


def import_object(path: str, key: str) -> Any:
    """What `path` names: "package.module:name" or "path/to/file.py:name". It is imported without a
    question; what a yaml names is `build_named`'s.

    A file's path is relative to the working directory; a file is imported once, however many names
    are taken from it. `key` is the config key, for messages.

    Raises:
        ValueError: `path` has another form.
        FileNotFoundError: there is no such file.
        ImportError: there is no such module, or the module has no such name.
    """
    module, name = _parts(path, key)
    found = _import_module(module, key)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ImportError(f"{key} is {path!r}, but {module} has no {part!r}")
        found = getattr(found, part)
    return found


def build_named(path: str, arguments: dict[str, Any], key: str) -> nn.Module:
    """The module that `path` of a yaml's `key` makes of keyword arguments, checked before anything
    is imported and again before it is called.

    `path` names a subclass of `nn.Module`, or a function that the named file or package defines. Of
    code that nobody consented to, an installed package, the function has to say that it returns an
    `nn.Module`.

    Raises:
        ValueError: it is nothing of that kind, or code that needs consent, see trust.py.
        FileNotFoundError, ImportError: as `import_object`.
    """
    _parts(path, key)
    check_module(path, key)
    found = import_object(path, key)
    _check_makes_modules(found, path, key)
    if arguments.get("trust_remote_code") and not trusts(path):
        raise ValueError(
            f"{key} {path!r} is called with trust_remote_code, which runs code of a repository: if "
            f"you trust it, {how_to_consent()}"
        )
    with tensors_only(not trusts(path)):
        made = found(**arguments)
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"{key} {path!r} returned {type(made).__name__}: an nn.Module is needed (a class, or a "
            "function that makes one)"
        )
    return made


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
    try:
        content = CfgNode.load_yaml_with_base(str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8, so no yaml of a config: {error}") from error
    except TypeError:  # fvcore's, of an empty file
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys and values of a config")
    cfg = CfgNode({"PROJECTS": content.get("PROJECTS", [])})
    for key, value in zip(opts[0::2], opts[1::2]):
        if key == "PROJECTS":
            cfg.merge_from_list([key, value])
    return list(cfg.PROJECTS)


def _parts(path: str, key: str) -> tuple[str, str]:
    """Module or file, and the name in it."""
    module, _, name = path.rpartition(":")
    relative = module.startswith(".") and not module.endswith(".py")
    if not module or not name or relative:
        raise ValueError(
            f"{key} is {path!r}: 'package.module:name' or 'path/to/file.py:name' is needed"
        )
    return module, name


def _check_makes_modules(found: Any, path: str, key: str) -> None:
    if isinstance(found, type) and issubclass(found, nn.Module):
        return
    named = _parts(path, key)[0]
    module = _import_module(named, key)
    function = inspect.unwrap(found) if callable(found) else found
    owner = getattr(found, "__self__", None)  # of a class method: a model's from_pretrained
    is_builder = inspect.isfunction(function) or (
        inspect.ismethod(found) and isinstance(owner, type) and issubclass(owner, nn.Module)
    )
    home = getattr(function, "__module__", None) or ""
    accepted = (
        f"{key} takes a subclass of nn.Module, or a function that {named} defines "
        "itself and that makes one"
    )
    if not is_builder:
        raise ValueError(f"{key} is {path!r}, which is {_kind(found)}: {accepted}")
    if home.partition(".")[0] != module.__name__.partition(".")[0]:
        raise ValueError(f"{key} is {path!r}, which comes from {home!r}: {accepted}")
    if not trusts(path) and not _returns_module(function):
        raise ValueError(
            f"{key} is {path!r}, which does not say that it returns an nn.Module and may do "
            f"anything: if you trust the call, {how_to_consent()}"
        )


def _kind(found: Any) -> str:
    return f"a class, {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"


def _returns_module(function: Any) -> bool:
    try:
        returned = typing.get_type_hints(function).get("return")
    except (AttributeError, NameError, TypeError):  # names that are there for type checkers alone
        return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)


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
    path = path.expanduser()
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
