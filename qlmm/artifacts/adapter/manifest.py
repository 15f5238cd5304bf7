"""``qlmm.json``: what an adapter is, next to it, in facts that PEFT's own files do not hold.

Usage: ``manifest = read_manifest(Path("runs/owl_lora/adapter"))``
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from qlmm.core.errors import ModelError
from qlmm.core.files import atomic_write
from qlmm.core.version import __version__
from qlmm.model.loading.identity import BaseIdentity
from qlmm.recipe.schema import Recipe

__all__ = ["MANIFEST", "Manifest", "read_manifest", "versions", "write_manifest"]

MANIFEST = "qlmm.json"
_DAMAGED = "fetch the adapter again, or take it from the run directory it was made in"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def _inside(name: str) -> str:
    """A file of the folder itself, whatever a manifest from elsewhere says."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise ValueError(f"{name!r} leads out of the folder")
    return name


class Manifest(BaseModel):
    """Everything needed to load the adapter again and to judge it.

    Attributes:
        base: what the base is, part by part.
        precision: what the run computed in; a reload computes the same way.
        frozen_sha256: one hash over every frozen tensor of the base as the run saw it, quantised form included.
        data: fingerprint of the rows, per source.
        proof: the run proof, as in ``run.json``.
        files: sha256 of the folder's other files.
        combined: for an adapter made of others: their manifests' facts, weights and method; None for a run's own.
    """

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    base: BaseIdentity
    recipe: Recipe
    precision: Literal["bf16", "fp16", "fp32"]
    seed: int
    frozen_sha256: str
    data: dict[str, Any]
    steps: int
    proof: dict[str, Any] | None = None
    versions: dict[str, str]
    files: dict[Annotated[str, AfterValidator(_inside)], str]
    combined: dict[str, Any] | None = None


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    return {"qlmm": __version__} | {name: version(name) for name in PACKAGES}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put the manifest into an adapter folder in one step."""
    atomic_write(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read an adapter's manifest.

    Raises:
        ModelError: A001 when the folder is no adapter of qlmm, A002 when its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        near = folder / "adapter"
        hint = f"did you mean {near}?" if (near / MANIFEST).is_file() else "name the adapter folder of a finished run"
        raise ModelError.one("A001", f"{folder} is not an adapter made by qlmm: it has no {MANIFEST}", help=hint)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError.one("A002", f"{path} is damaged: {place or 'file'}: {first['msg']}", help=_DAMAGED) from error
    except json.JSONDecodeError as error:
        raise ModelError.one("A002", f"{path} is damaged: {error}", help=_DAMAGED) from error
