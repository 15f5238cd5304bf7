"""The files of a base: weights and configurations, fetched if need be, and the folders that they lie in.

Usage: ``paths = weight_files(locate("some/model"), "base.model")``
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from pydantic import BaseModel, Field, ValidationError

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.compat.transformers_private import fetched_file
from qlmm.core.errors import ModelError, Unavailable
from qlmm.model.loading.hub import Located, locate, reading

__all__ = ["base_file", "sources_of", "weight_files"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class _Index(BaseModel):
    """Which file each tensor is in."""

    weight_map: dict[str, str] = Field(min_length=1)


def weight_files(located: Located, key: str) -> list[Path]:
    """A checkpoint's safetensors files, fetched if need be, looked for in the order of ``from_pretrained``.

    Raises:
        ModelError: A025 for a shard that is missing or an index that is damaged, A026 where there are none, M003 and
            following as for any base.
    """
    single = base_file(located, key, SINGLE)
    if single is not None:
        return [single]
    index = base_file(located, key, INDEX)
    if index is None:
        if _unknown(located, SINGLE) or _unknown(located, INDEX):
            raise _out_of_reach(located, key)
        message = f"{located.name} has no safetensors weights; pickled ones run code and are not read"
        help = "choose a revision with safetensors, or convert it where you trust it"
        raise ModelError.one("A026", message, key=key, help=help)
    names = _shards(index)
    found = {name: base_file(located, key, name) for name in names if Path(name).name == name}
    if any(path is None and _unknown(located, name) for name, path in found.items()):
        raise _out_of_reach(located, key)
    if missing := [name for name in names if found.get(name) is None]:
        message = f"{located.name} lacks {', '.join(missing)}, which its index names"
        raise ModelError.one("A025", message, key=key, help="fetch the base's files again")
    return [path for path in found.values() if path is not None]


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(_Index.model_validate_json(index.read_bytes()).weight_map.values()))
    except ValidationError as error:
        why = error.errors(include_input=False)[0]["msg"]
        help = "fetch the base's files again"
        raise ModelError.one("A025", f"{index} is not an index of weights: {why}", help=help) from error


def _unknown(located: Located, name: str) -> bool:
    """Whether a file that was not found may be on the Hub all the same."""
    if Path(located.path).is_dir():
        return False
    return try_to_load_from_cache(located.path, name, constants.HF_HUB_CACHE, located.revision) is None


def _out_of_reach(located: Located, key: str) -> ModelError:
    pinned = f" --revision {located.revision}" if located.revision else ""
    message = f"not all weights of {located.name} are in the cache, and the Hub cannot be reached"
    found = "offline (HF_HUB_OFFLINE=1) only what is in the cache is found"
    return Unavailable.one("M003", message, key=key, help=f"`hf download {located.path}{pinned}` fetches them; {found}")


def base_file(located: Located, key: str, name: str) -> Path | None:
    """One file of a base, fetched if need be; None where it has none of that name."""
    with reading(key, located):
        return fetched_file(located.path, name, located.revision)


def sources_of(folder: Path, manifest: Manifest) -> list[Path]:
    """The folders that are read when something is made of an adapter: its own, and those of its base."""
    base = manifest.recipe.base
    weights = base.connector.weights if base.connector is not None else None
    return [folder, *(Path(locate(name).path) for name in (base.model, base.vision, base.language, weights) if name)]
