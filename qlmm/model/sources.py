"""Where a base's parts come from: a Hub id, a folder, or a packaged `builtin:` name; and what exactly they are.

Usage: ``source = locate("openai/clip-vit-large-patch14@32bd64288804d66e")``
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from qlmm.core.errors import ModelError
from qlmm.model import builtin
from qlmm.model.contract import own_tower

__all__ = ["Located", "config_of", "config_sha256", "locate", "reading"]

BUILTIN = "builtin:"


@dataclass(frozen=True, slots=True)
class Located:
    """A part's name as written, and what transformers is asked for: a folder or an id, and a revision."""

    name: str
    path: str
    revision: str | None

    @property
    def options(self) -> dict[str, Any]:
        """What every `from_pretrained` call is given; code from repositories is never run."""
        return {"revision": self.revision, "trust_remote_code": False}


def locate(name: str) -> Located:
    """Resolve a recipe's name for a model; packaged weights are prepared on first use.

    Raises:
        UsageError: B001 and following when a packaged model cannot be prepared.
    """
    if name.startswith(BUILTIN):
        return Located(name, str(builtin.path(name.removeprefix(BUILTIN))), None)
    if Path(name).is_dir():
        return Located(name, name, None)
    model, _, revision = name.partition("@")
    return Located(name, model, revision or None)


@contextmanager
def reading(key: str, located: Located) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be had into one sentence with a way out.

    Args:
        key: the recipe key that named the model.
        located: the model.

    Raises:
        ModelError: M003 when there is no such model within reach, M004 when it needs remote code.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ModelError.one(
                "M004",
                f"{key}: {located.name} needs Python code from its repository, which qlmm never runs",
                help="choose a model that transformers supports itself",
            ) from error
        raise ModelError.one(
            "M003",
            f"{key}: the installed transformers cannot read {located.name}: {str(error).splitlines()[0]}",
            help="upgrade transformers, or choose another model",
        ) from error
    except OSError as error:
        raise ModelError.one(
            "M003",
            f"{key}: {located.name} is neither a model folder here nor a model that can be reached",
            help="check the spelling; for a gated model run `hf auth login`; offline (HF_HUB_OFFLINE=1) only models "
            "already in the cache are found",
        ) from error


def config_of(located: Located, key: str) -> PreTrainedConfig:
    """A part's configuration; the only file fetched before everything else was checked.

    Raises:
        ModelError: M003, M004 as `reading` says.
    """
    with reading(key, located):
        _register_tower(located.path)
        config: PreTrainedConfig = AutoConfig.from_pretrained(located.path, **located.options)
    return config


def config_sha256(config: PreTrainedConfig) -> str:
    """Hash of a configuration's meaning: what differs between library versions or machines is left out."""
    facts = {key: value for key, value in config.to_diff_dict().items() if key not in _INCIDENTAL}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


_INCIDENTAL = {"transformers_version", "_name_or_path", "_commit_hash", "dtype", "architectures"}


def _register_tower(path: str) -> None:
    """Import the tower file that a folder's configuration names, so that transformers' Auto classes know it."""
    file = Path(path) / "config.json"
    if file.is_file():
        own_tower(str(json.loads(file.read_text("utf-8")).get("model_type", "")))
