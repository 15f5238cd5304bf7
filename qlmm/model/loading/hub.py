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

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError
from transformers import AutoConfig, PreTrainedConfig

from qlmm.builtin import registry as builtin
from qlmm.compat.transformers_private import lasting_facts
from qlmm.core.errors import ModelError, Unavailable
from qlmm.model.assembled.owl_checkpoint import OwlPart, owl_part
from qlmm.model.contract import own_tower

__all__ = ["Located", "config_of", "config_sha256", "locate", "locate_part", "pinned", "reading"]

# How transformers names a package that is not there, the surest way first.
_PACKAGE = (r"pip install (?:-\S+ )*([\w.-]*\w)", r"[Pp]ackage `([\w.-]+)`", r"requires the ([\w.-]+) library")
# Packages that an extra of qlmm brings in the version it needs.
_EXTRAS = {"torchvision": "gpu"}


@dataclass(frozen=True, slots=True)
class Located:
    """A part's name as written, and what transformers is asked for: a folder or an id, and a revision.

    Attributes:
        commit: the one that the content of a converted folder came from.
    """

    name: str
    path: str
    revision: str | None
    commit: str | None = None

    @property
    def at(self) -> str | None:
        """The commit on the Hub that its files come from, once it is pinned; None for a folder."""
        return self.commit or self.revision

    @property
    def options(self) -> dict[str, Any]:
        """What every `from_pretrained` call is given; code from repositories is never run."""
        return {"revision": self.revision, "trust_remote_code": False}


def locate(name: str) -> Located:
    """Resolve a recipe's name for a model; packaged weights are prepared on first use.

    Raises:
        UsageError: B001 and following when a packaged model cannot be prepared.
    """
    if name.startswith(builtin.BUILTIN):
        return Located(name, str(builtin.path(name.removeprefix(builtin.BUILTIN))), None)
    if _is_folder(name):
        return Located(name, name, None)
    model, _, revision = name.partition("@")
    return Located(name, model, revision or None)


def locate_part(name: str, part: OwlPart) -> Located:
    """Resolve a recipe's name for a part of an assembled base; a released mPLUG-Owl gives that part of itself.

    Raises:
        UsageError: as ``locate`` does.
        ModelError: M003 and following, M151 and following, when a released checkpoint cannot be taken apart.
    """
    located = locate(name)
    with reading(f"base.{part}", located):
        found = owl_part(located.path, located.revision, part)
    return located if found is None else Located(name, str(found[0]), None, found[1])


@contextmanager
def reading(key: str, located: Located) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be had into one sentence with a way out.

    Args:
        key: the recipe key that named the model.
        located: the model.

    Raises:
        ModelError: M003 when there is no such model within reach, M004 when it needs remote code, M005 when it needs a
            package that is not installed, M006 when its licence has to be accepted first.
    """
    try:
        yield
    except ImportError as error:
        raise _needs_package(key, located, error, _named(error)) from error
    except ValueError as error:
        raise _unreadable(key, located, error) from error
    except OSError as error:
        raise _out_of_reach(key, located, error) from error


def _unreadable(key: str, located: Located, error: ValueError) -> ModelError:
    if "trust_remote_code" in str(error):
        return Unavailable.one(
            "M004",
            f"{located.name} needs Python code from its repository, which qlmm never runs",
            key=key,
            help="choose a model that transformers supports itself",
        )
    # What transformers says of a video processor without torchvision.
    if (wanted := re.search(r"requires `([\w.-]+)` to be installed", str(error))) is not None:
        return _needs_package(key, located, error, wanted[1])
    return Unavailable.one(
        "M003",
        f"the installed transformers cannot read {located.name}: {_first_line(error)}",
        key=key,
        help="upgrade transformers, or choose another model",
    )


def _out_of_reach(key: str, located: Located, error: OSError) -> ModelError:
    if any(isinstance(cause, GatedRepoError) for cause in _causes(error)):
        return Unavailable.one(
            "M006",
            f"{located.name} is gated: its licence has to be accepted before it can be fetched",
            key=key,
            help="accept the licence on the model's page, then run `hf auth login`",
        )
    if _is_folder(located.path):
        return Unavailable.one(
            "M003",
            f"the folder {located.name} does not hold all of a model: {_first_line(error).split('. ')[0]}",
            key=key,
            help="copy the missing files from where the model came from",
        )
    return Unavailable.one(
        "M003",
        f"{located.name} is neither a model folder here nor a model that can be reached",
        key=key,
        help="check the spelling; for a private model run `hf auth login`; offline (HF_HUB_OFFLINE=1) only models "
        "already in the cache are found",
    )


def _needs_package(key: str, located: Located, error: Exception, package: str | None) -> ModelError:
    if package is None:
        message = f"{located.name} needs a package that is not installed: {_first_line(error)}"
        return Unavailable.one("M005", message, help="install that package", key=key)
    extra = _EXTRAS.get(package)
    return Unavailable.one(
        "M005",
        f"{located.name} needs the package {package}, which is not installed",
        key=key,
        help=f'pip install "qlmm[{extra}]"' if extra else f"pip install {package}",
    )


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name too long for a file system
        return False


def config_of(located: Located, key: str) -> PreTrainedConfig:
    """A part's configuration; the only file fetched before everything else was checked.

    Raises:
        ModelError: M003 to M006 as `reading` says.
    """
    with reading(key, located):
        if Path(located.path).is_file():
            message = f"{located.name} is a file, not a model folder"
            raise Unavailable.one("M003", message, help="name the folder that it lies in", key=key)
        # Importing a tower's file makes its class known to transformers' Auto classes.
        own_tower(_stated_kind(located))
        config: PreTrainedConfig = AutoConfig.from_pretrained(located.path, **located.options)
    return config


def _stated_kind(located: Located) -> str:
    """The `model_type` of a configuration that transformers may not know yet; empty where there is none."""
    file = Path(located.path) / "config.json"
    if file.is_file():
        stated = json.loads(file.read_text("utf-8"))
    elif _is_folder(located.path):
        return ""
    else:
        stated, _ = PreTrainedConfig.get_config_dict(located.path, revision=located.revision)
    return str(stated.get("model_type", ""))


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
