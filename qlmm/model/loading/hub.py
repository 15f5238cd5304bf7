"""Where a base's parts come from: a Hub id, a folder, or a packaged `builtin:` name; and what exactly they are.

Usage: ``source = locate("openai/clip-vit-large-patch14@32bd64288804d66e")``
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, StrictDataclassError
from pydantic import JsonValue
from transformers import AutoConfig, PreTrainedConfig

from qlmm.builtin import registry as builtin
from qlmm.compat.transformers_private import lasting_facts
from qlmm.core.errors import ModelError, Unavailable
from qlmm.core.files import is_lfs_pointer
from qlmm.core.json_files import read_object, refuse_code
from qlmm.model.assembled.owl_checkpoint import OwlPart, owl_part
from qlmm.model.contract import own_tower

__all__ = ["Located", "building", "config_of", "config_sha256", "locate", "locate_part", "pinned", "reading"]

# How transformers names a package that is not there, the surest way first.
_PACKAGE = (r"pip install (?:-\S+ )*([\w.-]*\w)", r"[Pp]ackage `([\w.-]+)`", r"requires the ([\w.-]+) library")
# Packages that an extra of qlmm brings in the version it needs.
_EXTRAS = {"torchvision": "gpu"}
# Where libraries look for the code of a repository.
_CONFIGURATIONS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer_config.json", "video_preprocessor_config.json",
)  # fmt: skip
# What is built module by module, and takes time at any size; the largest models have some hundreds.
_COUNTED, _MOST_COUNTED = re.compile(r"layer|depth|block|expert|stage"), 2000
_SIZES, _LARGEST = re.compile(r"size|dim|width|channels|heads|positions"), 1 << 24
# Tables have more rows than anything is wide: one class of transformers looks twenty million n-grams up.
_TABLES, _LONGEST_TABLE = re.compile(r"vocab"), 1 << 28

# What libraries raise for a value that they never expected.
_WRONG_VALUES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
)


@dataclass(frozen=True, slots=True)
class Located:
    """A part's name as written, and what transformers is asked for: a folder or an id, and a revision."""

    name: str
    path: str
    revision: str | None
    commit: str | None = None  # that the content of a converted folder came from

    @property
    def at(self) -> str | None:
        """The commit on the Hub that its files come from, once it is pinned; None for a folder."""
        return self.commit or self.revision

    @property
    def options(self) -> dict[str, Any]:
        """What every `from_pretrained` call is given; code from repositories is never run."""
        return {"revision": self.revision, "trust_remote_code": False}


def locate(name: str) -> Located:
    """Resolve a recipe's name for a model.

    Packaged weights are prepared on first use (errors B001 and following). Raises M007 for a folder with Git LFS's
    pointers in place of its files.
    """
    if name.startswith(builtin.BUILTIN):
        return Located(name, str(builtin.path(name.removeprefix(builtin.BUILTIN))), None)
    if _is_folder(name):
        _check_fetched(Path(name))
        return Located(name, name, None)
    model, _, revision = name.partition("@")
    return Located(name, model, revision or None)


def _check_fetched(folder: Path) -> None:
    pointers = [file.name for file in sorted(folder.iterdir()) if file.is_file() and is_lfs_pointer(file)]
    if pointers:
        message = f"{folder} has Git LFS pointers in place of {', '.join(pointers)}"
        help = f"run `git lfs pull` in {folder}, or fetch the model with `hf download`"
        raise ModelError.one("M007", message, help=help)


def locate_part(name: str, part: OwlPart) -> Located:
    """As ``locate``; a released mPLUG-Owl gives that part of itself (errors M003 and following, M151 and following)."""
    located = locate(name)
    with reading(f"base.{part}", located):
        found = owl_part(located.path, located.revision, part)
    return located if found is None else Located(name, str(found[0]), None, found[1])


@contextmanager
def reading(key: str, located: Located) -> Iterator[None]:
    """Turn what transformers raises for a model into one sentence with a way out, under the recipe's key.

    Raises:
        ModelError: M003 when there is no such model within reach, M004 when it needs remote code, M005 when it needs a
            package that is not installed, M006 when its licence has to be accepted first.
    """
    try:
        yield
    except (ImportError, ValueError, OSError) as error:
        code, message, help = _explained(located, error)
        raise Unavailable.one(code, message, key=key, help=help) from error


def _explained(located: Located, error: ImportError | ValueError | OSError) -> tuple[str, str, str]:
    """Code, message and help."""
    name, first = located.name, next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, ImportError):
        package = _named(error)
        if package is None:
            return "M005", f"{name} needs a package that is not installed: {first}", "install that package"
        return _needs(name, package)
    if isinstance(error, ValueError):
        if "trust_remote_code" in str(error):
            message = f"{name} needs Python code from its repository, which qlmm never runs"
            return "M004", message, "choose a model that transformers supports itself"
        # What transformers raises for a video processor without torchvision.
        if (wanted := re.search(r"requires `([\w.-]+)` to be installed", str(error))) is not None:
            return _needs(name, wanted[1])
        message = f"the installed transformers cannot read {name}: {first}"
        return "M003", message, "upgrade transformers, or choose another model"
    return _out_of_reach(located, error, first)


def _out_of_reach(located: Located, error: OSError, first: str) -> tuple[str, str, str]:
    name = located.name
    if any(isinstance(cause, GatedRepoError) for cause in _causes(error)):
        message = f"{name} is gated: its licence has to be accepted before it can be fetched"
        return "M006", message, "accept the licence on the model's page, then run `hf auth login`"
    if _is_folder(located.path):
        message = f"the folder {name} does not have all of a model: {first.split('. ', maxsplit=1)[0]}"
        return "M003", message, "copy the missing files from where the model came from"
    return (
        "M003",
        f"{name} is neither a model folder here nor a model that can be reached",
        "check the spelling; for a private model run `hf auth login`; offline (HF_HUB_OFFLINE=1) only models "
        "already in the cache are found",
    )


def _needs(name: str, package: str) -> tuple[str, str, str]:
    extra = _EXTRAS.get(package)
    message = f"{name} needs the package {package}, which is not installed"
    return "M005", message, f'pip install "qlmm[{extra}]"' if extra else f"pip install {package}"


def _named(error: ImportError) -> str | None:
    """The package that an import lacked; transformers names it in words only."""
    if error.name is not None:
        return error.name.partition(".")[0]
    found = (re.search(pattern, str(error)) for pattern in _PACKAGE)
    return next((match[1].lower() for match in found if match is not None), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name too long for a file system
        return False


def config_of(located: Located, key: str) -> PreTrainedConfig:
    """A part's configuration, which is fetched before all other files; raises as `reading`."""
    with reading(key, located):
        if Path(located.path).is_file():
            message = f"{located.name} is a file, not a model folder"
            raise Unavailable.one("M003", message, help="name the folder that it lies in", key=key)
        stated = _stated(located)
        for name in _CONFIGURATIONS:
            refuse_code(_known_place(located, name))
        _refuse_sizes(located, stated, key)
        # Importing a tower's file makes its class known to transformers' Auto classes.
        own_tower(str(stated.get("model_type", "")))
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(located.path, **located.options)
        except _WRONG_VALUES as error:
            raise ValueError(f"a value of its configuration is wrong: {error}") from error
    return config


@contextmanager
def building(key: str, located: Located) -> Iterator[None]:
    """Build a model on the meta device; what its configuration makes fail is M003, and all else as in `reading`."""
    with torch.device("meta"), reading(key, located):
        try:
            yield
        except _WRONG_VALUES as error:
            raise ValueError(f"a value of its configuration is wrong: {error}") from error


def _stated(located: Located) -> dict[str, JsonValue]:
    """A configuration as it is written, before transformers reads it; empty where there is none."""
    file = Path(located.path) / "config.json"
    if file.is_file():
        return read_object(file)
    if _is_folder(located.path):
        return {}
    stated: dict[str, JsonValue] = PreTrainedConfig.get_config_dict(located.path, revision=located.revision)[0]
    return stated


def _known_place(located: Located, name: str) -> Path:
    """Where a file of a model lies, if it is in its folder or in the cache."""
    cached = None if _is_folder(located.path) else try_to_load_from_cache(located.path, name, revision=located.revision)
    return Path(cached) if isinstance(cached, str) else Path(located.path) / name


def _refuse_sizes(located: Located, value: JsonValue, key: str, name: str = "") -> None:
    """Refuse (M008) numbers by which a model without weights takes minutes to build."""
    if isinstance(value, dict):
        for inner, one in value.items():
            _refuse_sizes(located, one, key, inner)
    elif isinstance(value, list):
        for one in value[:_MOST_COUNTED]:
            _refuse_sizes(located, one, key, name)
    elif isinstance(value, int | float):
        counted = _COUNTED.search(name) is not None and "size" not in name
        sized = _LONGEST_TABLE if _TABLES.search(name) else _LARGEST
        most = _MOST_COUNTED if counted else sized if _SIZES.search(name) else None
        if most is not None and not abs(value) <= most:
            message = f"{located.name} has {name} {value}, and at most {most:,} is possible"
            raise ModelError.one("M008", message, key=key, help="fetch its config.json again, or choose another model")


def pinned(located: Located) -> Located:
    """The same part at the commit that its branch points to, so that all of its files come from one state.

    Asked after its configuration was read: that has put the commit into the cache. A folder has none.
    """
    if located.commit is not None or _is_folder(located.path):
        return located
    found = try_to_load_from_cache(located.path, "config.json", revision=located.revision)
    return replace(located, revision=Path(found).parent.name) if isinstance(found, str) else located


def config_sha256(config: PreTrainedConfig) -> str:
    """Hash of a configuration's meaning: what differs between library versions or machines is left out."""
    return hashlib.sha256(json.dumps(lasting_facts(config), sort_keys=True, default=str).encode()).hexdigest()
