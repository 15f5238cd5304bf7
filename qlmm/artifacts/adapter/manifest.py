"""``qlmm.json``: the facts about an adapter that PEFT's own files lack.

Usage: ``manifest = read_manifest(Path("runs/owl_lora/adapter"))``
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from qlmm.artifacts.adapter.local_paths import without_places
from qlmm.core.errors import ModelError
from qlmm.core.filenames import LOCAL_RECIPE, MANIFEST
from qlmm.core.files import atomic_write
from qlmm.core.json_files import read_small
from qlmm.core.secrets import redact
from qlmm.core.version import __version__
from qlmm.data.fingerprint import DataFingerprint
from qlmm.model.loading.identity import BaseIdentity
from qlmm.proof.records import IN_JSON, Proof
from qlmm.recipe.schema import Recipe

__all__ = ["Combination", "CombinedSource", "Manifest", "read_manifest", "versions", "write_manifest"]

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
LONGEST_NAME = 200  # bytes; file systems take 255 in a name, and a hidden copy has a longer one


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise ValueError(f"{name!r} leads out of the folder")
    if not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise ValueError("a file's name is too long, or has control characters")
    return name


def _with_own(found: dict[str, str]) -> dict[str, str]:
    if "qlmm" not in found:
        raise ValueError("the version of qlmm is missing")
    return found


class CombinedSource(BaseModel):
    """One of the adapters that another was made of; `name` is never a path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights_sha256: str
    steps: int
    data: tuple[str, ...]


class Combination(BaseModel):
    """What an adapter was made of, and what was measured of the result.

    Attributes:
        density: share of values that were kept; None for methods that keep all.
        losses: held-out loss in nats per token, by the sources' names and ``combined``; empty where not measured.
        measured_on: on which rows, or why on none.
        reload: largest difference of logits after it was read back in a fresh process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    weights: tuple[float, ...]
    density: float | None = None
    sources: tuple[CombinedSource, ...]
    losses: dict[str, float] = {}
    measured_on: str = ""
    reload: float = 0.0


class Manifest(BaseModel):
    """All that is needed to load the adapter again and to judge it.

    Attributes:
        base: what the base is, part by part.
        precision: what the run computed in; a reload computes the same way.
        frozen_sha256: one hash over every frozen tensor of the base as the run saw it, quantised form included.
        data: fingerprint of the rows, per source.
        exact: whether the run had the same versions, settings of the environment and device from its start to its end.
        proof: the run proof, as in ``run.json``; None for an adapter made of others.
        files: sha256 of the folder's other files.
        combined: for an adapter made of others; None for a run's own.
    """

    model_config = IN_JSON

    version: Literal[1] = 1
    base: BaseIdentity
    recipe: Recipe
    precision: Literal["bf16", "fp16", "fp32"]
    seed: int = Field(ge=0, lt=2**32)
    frozen_sha256: str
    data: DataFingerprint
    steps: int
    exact: bool = True
    proof: Proof | None = None
    versions: Annotated[dict[str, str], AfterValidator(_with_own)]
    files: dict[Annotated[str, AfterValidator(_inside)], str]
    combined: Combination | None = None

    @property
    def proven_by(self) -> Proof:
        """The run proof; where there is none, a proof without promises, which proves nothing."""
        return self.proof or Proof((), None, None, 0, None)

    def shared(self) -> Manifest:
        """The manifest as others may read it: without absolute paths and access keys."""
        return Manifest.model_validate_json(json.dumps(without_places(self.model_dump(mode="json"))))


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    return {"qlmm": __version__} | {name: version(name) for name in PACKAGES}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write what others may read into ``qlmm.json``, and paths of this machine into a file that is never sent.

    A base or rows in a local folder are recorded by name and hash; the paths beside them let this machine find them.
    """
    shared, local = manifest.shared(), folder / LOCAL_RECIPE
    if shared.recipe != manifest.recipe:
        atomic_write(local, redact(manifest.recipe.model_dump_json(indent=1)) + "\n")
    else:
        local.unlink(missing_ok=True)
    atomic_write(folder / MANIFEST, shared.model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path, *, local: bool = True) -> Manifest:
    """Read an adapter's manifest, with the paths of this machine where `local` and where the folder has them.

    Raises:
        ModelError: A001 when the folder is not an adapter of qlmm, A002 when its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        near = folder / "adapter"
        hint = f"did you mean {near}?" if (near / MANIFEST).is_file() else "name the adapter folder of a finished run"
        raise ModelError.one("A001", f"{folder} is not an adapter made by qlmm: it has no {MANIFEST}", help=hint)
    try:
        manifest = Manifest.model_validate_json(read_small(path))
        if not (local and (folder / LOCAL_RECIPE).is_file()):
            return manifest
        recipe = Recipe.model_validate_json(read_small(folder / LOCAL_RECIPE))
        here = manifest.model_copy(update={"recipe": recipe})
        # Only as long as both recipes are the same but for their places.
        return here if here.shared().recipe == manifest.recipe else manifest
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise _damaged(path, ".".join(map(str, first["loc"])) or "file", first["msg"]) from error
    except OSError as error:
        raise _damaged(path, "file", str(error.strerror)) from error


def _damaged(path: Path, place: str, why: str) -> ModelError:
    help = "fetch the adapter again, or take it from the run directory it was made in"
    return ModelError.one("A002", f"{path} is damaged: {place}: {why}", help=help)
