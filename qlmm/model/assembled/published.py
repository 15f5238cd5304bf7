"""Published checkpoints as they lie in a folder or on the Hub: their configuration, and their weights one by one.

Older checkpoints are pickles, which may run code when they are read. Here they are read by PyTorch's restricted
unpickler only, converted to safetensors in qlmm's cache, and never opened again.

Usage: ``open_checkpoint("some/model").tensors(lambda name: name.startswith("abstractor."))``
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig

from qlmm.builtin.made_once import made_once
from qlmm.core import env
from qlmm.core.errors import ModelError
from qlmm.model.contract import Stated

__all__ = ["Checkpoint", "check_whole", "configuration", "converted", "open_checkpoint"]

# Where weights are looked for, the first that is there decides.
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "mm_projector.bin")
_BESIDE = ("*.json", "tokenizer.model")
# To be raised when a conversion changes, so that folders made by an older one are not used.
_MADE_BY = 1
_AGAIN = "fetch the checkpoint's files again"


class _Index(BaseModel):
    """Which file each tensor is in."""

    weight_map: dict[str, str] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint on this machine: its configuration as it was written, and the files of its weights."""

    name: str
    folder: Path
    stated: Stated
    files: tuple[Path, ...]

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """The weights with a wanted name; raises M152 for a damaged file, M153 for a pickle with more than tensors."""
        for file in self.files:
            reading = _safetensors if file.suffix == ".safetensors" else _pickled
            try:
                yield from reading(file, wanted)
            except (pickle.UnpicklingError, TypeError) as error:
                why = f"{file.name} has more than tensors in it, and a pickle can run any code: it was not read"
                help = "use a checkpoint in safetensors, or convert this one where you trust it"
                raise ModelError.one("M153", f"{self.name}: {why}", help=help) from error
            except (OSError, RuntimeError, EOFError, SafetensorError) as error:
                raise ModelError.one("M152", f"{self.name}: {file.name} is damaged: {error}", help=_AGAIN) from error

    @property
    def digest(self) -> str:
        """Names this very checkpoint: every file's place, size and time of change."""
        beside = [file for pattern in _BESIDE for file in self.folder.glob(pattern)]
        facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in (*beside, *self.files)]
        return hashlib.sha256(json.dumps([_MADE_BY, sorted(facts)]).encode()).hexdigest()[:16]


def _safetensors(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118  # it is not a mapping
            if wanted(name):
                yield name, opened.get_tensor(name)


def _pickled(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    # Files from before PyTorch 1.6 are no archives, and cannot be mapped into memory.
    read = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(read, dict):
        raise TypeError("not a dictionary")
    for name, value in read.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TypeError("not a tensor")
        if wanted(name):
            yield name, value


def configuration(path: str, revision: str | None) -> Stated:
    """A checkpoint's configuration as it was written, whether or not transformers knows its kind; empty without one."""
    if Path(path).is_file():
        return {}
    try:
        stated: Stated = PreTrainedConfig.get_config_dict(path, revision=revision)[0]
    except (OSError, ValueError):
        return {}
    return stated


def open_checkpoint(path: str, revision: str | None = None) -> Checkpoint:
    """A checkpoint here or fetched from the Hub (OSError); raises M151 when not all of its weights are there."""
    folder = Path(path) if Path(path).is_dir() else _fetched(path, revision)
    for name in WEIGHTS:
        file, index = folder / name, folder / f"{name}.index.json"
        if file.is_file() or index.is_file():
            files = (file,) if file.is_file() else _shards(path, index)
            return Checkpoint(path, folder, configuration(str(folder), None), files)
    message = f"{path} has no weights: none of {', '.join(WEIGHTS)}, and no index of shards"
    raise ModelError.one("M151", message, help="name a folder or a Hub id of a published checkpoint")


def _fetched(path: str, revision: str | None) -> Path:
    """The snapshot of a repository: small files, then the first kind of weights that it has."""
    folder = Path(snapshot_download(path, revision=revision, allow_patterns=list(_BESIDE)))
    for name in WEIGHTS:
        stem, _, kind = name.rpartition(".")
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=[f"{stem}*.{kind}"]))
        if any(folder.glob(f"{stem}*.{kind}")):
            break
    return folder


def _shards(path: str, index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(_Index.model_validate_json(index.read_bytes()).weight_map.values()))
    except ValidationError as error:
        why = error.errors(include_input=False)[0]["msg"]
        raise ModelError.one("M152", f"{path}: {index.name} is not an index of weights: {why}", help=_AGAIN) from error
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        message = f"{path} lacks {', '.join(missing)}, which {index.name} names"
        raise ModelError.one("M151", message, help="fetch the missing files")
    return tuple(index.parent / name for name in names)


def converted(checkpoint: Checkpoint, part: str, build: Callable[[Path], None]) -> Path:
    """The cache folder with a part of a checkpoint, which ``build`` writes if need be; raises M154 when it cannot."""
    folder = env.home() / "converted" / f"{part}-{checkpoint.digest}"
    try:
        return made_once(folder, build, {"checkpoint": checkpoint.name, "part": part})
    except (OSError, SafetensorError) as error:
        help = "free disk space, or let QLMM_HOME name a folder on another disk"
        raise ModelError.one("M154", f"{checkpoint.name} could not be converted: {error}", help=help) from error


def check_whole(name: str, part: str, model: nn.Module, found: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of weights with the module they are for; raises M155 with the first that differ."""
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    named = list(model.named_parameters(remove_duplicate=False))
    there = {id(value) for key, value in named if key in found}
    tied = {key for key, value in named if id(value) in there}
    missing = sorted(wanted.keys() - found.keys() - tied)
    extra = sorted(found.keys() - wanted.keys())
    other = sorted(key for key in found.keys() & wanted.keys() if found[key] != wanted[key])
    faults = [f"lacks {key}" for key in missing[:2]] + [f"has {key}, which no such model has" for key in extra[:2]]
    faults += [f"has {key} of {_by(found[key])}, not {_by(wanted[key])}" for key in other[:2]]
    if faults:
        message = f"{name} does not have the {part} that configuration and recipe describe: it {'; it '.join(faults)}"
        help = "name a checkpoint of that kind, with the vision tower and the language model it was trained with"
        raise ModelError.one("M155", message, help=help)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
