"""An adapter folder back to a model that answers: base, adapter, processor, in one call.

Usage: ``loaded = load(Path("runs/owl_lora/adapter")); loaded.model.generate(**loaded.encoder.prompt(sample))``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from qlmm.artifacts.adapter.manifest import MANIFEST, Manifest, read_manifest
from qlmm.core.errors import ModelError
from qlmm.core.files import file_sha256
from qlmm.data.encoding.encoder import Encoder
from qlmm.model.image_budget.budget import agree
from qlmm.model.loading.base import identity, load_model, load_processor, load_saved_processor
from qlmm.model.loading.encoder import make_encoder
from qlmm.model.numerics.precision import Precision, again, choose
from qlmm.model.peft.adapter import fill_bare, to_fp32
from qlmm.proof.probe import PROBE
from qlmm.recipe.schema import BaseSection, DataSection, Source

__all__ = [
    "LoadedAdapter",
    "LoadedBase",
    "check_base",
    "check_files",
    "check_revision",
    "load",
    "load_base",
    "plain_base",
]

# Without these an adapter silently answers with an untrained connector, or not at all.
REQUIRED = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """A model with its adapter, in evaluation mode, and what is needed to talk to it.

    Attributes:
        bare: parameters of the base itself that the adapter replaced, by their names in `model`.
    """

    model: PeftModel
    processor: ProcessorMixin
    encoder: Encoder
    manifest: Manifest
    precision: Precision
    bare: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base without an adapter, in evaluation mode, and what is needed to talk to it."""

    model: PreTrainedModel
    encoder: Encoder
    precision: Precision


def load(folder: str | Path, *, precision: Precision | None = None) -> LoadedAdapter:
    """Load an adapter onto its base; works for native and assembled bases alike.

    Args:
        folder: the adapter folder of a run.
        precision: where and how to compute; by default as the run did where this machine can, else its own best.

    Raises:
        ModelError: A001 to A003 for a folder that is no whole adapter, A004 for a base that is not the one it was
            trained on.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    check_base(manifest)
    base = manifest.recipe.base
    where = precision or again(manifest.precision)
    model = load_model(base, where, seed=manifest.seed)
    wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    to_fp32(wrapped)
    bare = fill_bare(wrapped, folder)
    processor = load_saved_processor(base, folder)
    encoder, _ = make_encoder(base, manifest.recipe.data, processor)
    agree(model, processor)
    return LoadedAdapter(wrapped.eval(), processor, encoder, manifest, where, bare)


def plain_base(name: str) -> BaseSection:
    """A vision-language model as it comes: a Hub id or a folder, nothing quantised, its own chat template."""
    return BaseSection(model=name, quantize="none")


def load_base(name: str, *, precision: Precision | None = None) -> LoadedBase:
    """Load a base alone, to be asked or to judge.

    Args:
        name: Hub id (``id@commit`` pins it) or folder of a vision-language model.
        precision: where and how to compute; by default this machine's best.

    Raises:
        ModelError: M003 and following for whatever makes the base impossible, D030 and following for a processor that
            qlmm cannot ask.
    """
    base, where = plain_base(name), precision or choose("auto", "auto")
    processor = load_processor(base)
    encoder, _ = make_encoder(base, DataSection(sources=(Source(path="-"),)), processor)
    model = load_model(base, where, seed=0)
    agree(model, processor)
    return LoadedBase(model, encoder, where)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the folder with its manifest before anything is read into a model.

    Raises:
        ModelError: A003 naming the files that are missing or differ, or whose hash nobody wrote down.
    """
    help = "fetch the adapter again, or take it from the run directory it was made in"
    wrong = [name for name in REQUIRED if not (folder / name).is_file()]
    wrong += [
        name
        for name, sha256 in manifest.files.items()
        if name not in wrong and (not (folder / name).is_file() or file_sha256(folder / name) != sha256)
    ]
    if wrong:
        raise ModelError.one(
            "A003",
            f"{folder} is not as it was written: {', '.join(wrong)} missing or changed",
            help=help,
        )
    unknown = [name for name in (*REQUIRED, PROBE) if name not in manifest.files and (folder / name).is_file()]
    if unknown:
        raise ModelError.one("A003", f"{folder}: {MANIFEST} has no hash of {', '.join(unknown)}", help=help)


def check_base(manifest: Manifest) -> None:
    """Refuse a base that is not the one the adapter was trained on, by its configuration.

    Raises:
        ModelError: A004 with what was recorded and what is there now.
    """
    recorded, present = manifest.base["parts"], identity(manifest.recipe.base)["parts"]
    for role, facts in recorded.items():
        if facts["config_sha256"] != present[role]["config_sha256"]:
            raise ModelError.one(
                "A004",
                f"{facts['id']} is not the {role} this adapter was trained on: its configuration differs",
                help=f"the adapter recorded revision {facts['revision'] or 'none'}; pin it as id@revision",
            )


def check_revision(manifest: Manifest) -> None:
    """Refuse a base whose commit is known not to be the recorded one; weights change with no other sign.

    Raises:
        ModelError: A005 with both.
    """
    present = identity(manifest.recipe.base)["parts"]
    for role, facts in manifest.base["parts"].items():
        recorded, now = facts["revision"], present[role]["revision"]
        if recorded and now and recorded != now:
            raise ModelError.one(
                "A005",
                f"{facts['id']} is at revision {now} here; the adapter was trained on {recorded}",
                help=f"fetch that revision: hf download {facts['id'].partition('@')[0]} --revision {recorded}",
            )
