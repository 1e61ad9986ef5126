# SPDX-License-Identifier: Apache-2.0
"""Which code a yaml may bring in.

A yaml can name code: PROJECTS and MODEL.MODULE.PATH. Installed packages and known projects are
imported as they are; a file, or a package that lies elsewhere, only where a person consents to it:

- `--trust-code` of the programs, `trust_code=True` of the functions that take a yaml or a config;
- the environment variable SPARSE_REFINE_TRUST_CODE=1, which processes that are started inherit;
- the key as a KEY VALUE pair, which is no yaml's word.

No config key is among them: the yaml could set it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

VARIABLE = "SPARSE_REFINE_TRUST_CODE"
# Detectron2 projects that PROJECTS may name without consent, where they are installed packages or
# on PYTHONPATH: Detectron2's own, and those of the shipped configs.
KNOWN_PROJECTS = ("detectron2.projects", "mask2former", "pem")

_trusted: set[str] = set()
_named_by: dict[str, str] = {}  # code -> the yaml that names it, for messages


def trusts_everything() -> bool:
    """Whether SPARSE_REFINE_TRUST_CODE=1 is set."""
    return os.environ.get(VARIABLE) == "1"


def trust(codes: Iterable[str]) -> None:
    """Consent, for as long as the process runs, to what these name: "module", "module:name" or
    "file.py:name"."""
    _trusted.update(_place(code) for code in codes if code)


def trusts(code: str) -> bool:
    """Whether somebody consented to `code`."""
    return trusts_everything() or _place(code) in _trusted


def given(key: str, opts: Sequence) -> bool:
    """Whether KEY VALUE pairs set `key`."""
    return key in opts[0::2]


def note_source(code: str, path: str) -> None:
    """Remember that the yaml at `path` names `code`, for messages."""
    if code:
        _named_by[code] = path


def check_project(code: str, path: str) -> None:
    """Check that an entry of PROJECTS in the yaml at `path` may be imported.

    Raises:
        ValueError: it needs consent that nobody gave, or is of Python's standard library.
    """
    module = module_of(code)
    _check_not_standard(code, "PROJECTS")
    known = any(f"{module}.".startswith(f"{name}.") for name in KNOWN_PROJECTS)
    if trusts(code) or (known and _is_installed(module)):
        return
    raise ValueError(_refusal("PROJECTS", code, str(path)))


def check_module(code: str, key: str) -> None:
    """Check that what MODEL.MODULE.PATH names may be imported; `key` is its name, for messages.

    Raises:
        ValueError: as `check_project`.
    """
    module = module_of(code)
    _check_not_standard(code, key)
    if trusts(code) or (not module.endswith(".py") and _is_installed(module)):
        return
    raise ValueError(_refusal(key, code, _named_by.get(code, "")))


def check_pickles(path: str, allowed: bool, opts: Sequence, trust_code: bool) -> None:
    """Check that MODEL.ALLOW_PICKLE True is not the word of the yaml at `path` alone.

    Raises:
        ValueError: it is.
    """
    if not allowed or trust_code or trusts_everything() or given("MODEL.ALLOW_PICKLE", opts):
        return
    raise ValueError(
        f"{path} sets MODEL.ALLOW_PICKLE True: loading a Python pickle runs whatever code it "
        "holds, so this is not a yaml's to say. If you trust where its checkpoints come from, say "
        f"MODEL.ALLOW_PICKLE True as a KEY VALUE pair; or {how_to_consent()}"
    )


@contextmanager
def tensors_only(active: bool = True) -> Iterator[None]:
    """Inside, torch.load reads tensors and runs nothing, whatever it is called with: arguments of a
    yaml can name checkpoints (timm's `checkpoint_path`)."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load reads it
    before = os.environ.get(name)
    if active:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if active and before is None:
            os.environ.pop(name, None)
        elif active:
            os.environ[name] = before


def module_of(code: str) -> str:
    """The module or file of "module", "module:name" or "file.py:name"."""
    return code.rpartition(":")[0] or code


def _place(code: str) -> str:
    """What consent is given to: a file, by its whole path; of a module the package."""
    module = module_of(code)
    if module.endswith(".py"):
        return str(Path(module).expanduser().resolve())
    return module.partition(".")[0]


def how_to_consent() -> str:
    """For messages: the three ways."""
    return (
        f"consent with --trust-code, with trust_code=True in Python, or with {VARIABLE}=1 in the "
        "environment"
    )


def _refusal(key: str, code: str, path: str) -> str:
    return (
        f"{key}{f' of {path}' if path else ''} names {code!r}, code that would run: if you trust "
        f"it as you would a program, {how_to_consent()}"
    )


def _check_not_standard(code: str, key: str) -> None:
    folder = _folder(module_of(code))
    if folder == "":
        raise ValueError(
            f"{key} names {code!r}, of Python's standard library: a project or a model is needed"
        )


def _is_installed(module: str) -> bool:
    """Whether it is an installed package, one on PYTHONPATH, or one that runs here already; and
    not merely a folder where the program happens to run."""
    top = module.partition(".")[0]
    folder = _folder(module)
    if top in sys.modules or folder is None:
        return True
    python_path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sites = _site_folders()
    known = {str(Path(entry).resolve()) for entry in (*sites, *python_path)}
    return folder in known or any(
        root in (Path(folder), *Path(folder).parents) for root in _editable(sites)
    )


def _folder(module: str) -> str | None:
    """The folder that holds a module's outermost package: "" in the standard library, None where
    there is no such package, which importing it will say."""
    top = module.partition(".")[0]
    if module.endswith(".py") or not top or top == "__main__":
        return None
    try:
        spec = importlib.util.find_spec(top)  # of an outermost name: runs nothing of it
    except ValueError:  # a module made by hand, which is here already
        return None
    if spec is None:
        return None
    if spec.origin in ("built-in", "frozen"):
        return ""
    locations = list(spec.submodule_search_locations or [])
    path = Path(locations[0] if locations else spec.origin or "").resolve().parent
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    return "" if path in standard or path.name == "lib-dynload" else str(path)


def _site_folders() -> list[str]:
    own = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return [*own, *site.getsitepackages(), site.getusersitepackages()]


def _editable(sites: list[str]) -> Iterator[Path]:
    """Folders that `pip install -e` stands for."""
    for package in importlib.metadata.distributions(path=sites):
        origin = json.loads(package.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            yield Path(url2pathname(urlparse(origin["url"]).path)).resolve()
