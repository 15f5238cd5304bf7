"""An adapter folder, or a base alone, to a model that answers.

Usage: ``loaded = load(Path("runs/owl_lora/adapter")); loaded.model.generate(**loaded.encoder.prompt(sample))``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.artifacts.adapter.tensors import check_finite, check_tensors
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, PROBE
from qlmm.core.files import file_sha256
from qlmm.core.json_files import refuse_code
from qlmm.data.encoding.encoder import Encoder
from qlmm.model.image_budget.budget import agree
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import Precision, again, choose
from qlmm.model.peft.adapter import fill_bare, to_fp32
from qlmm.model.peft.config_file import read_config
from qlmm.recipe.schema import BaseSection, DataSection, Source

__all__ = ["LoadedAdapter", "LoadedBase", "check_base", "check_files", "load", "load_base", "plain_base"]

# Without these an adapter silently answers with an untrained connector, or not at all.
REQUIRED = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
# Their keys are words of a language.
VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """A model with its adapter, in evaluation mode, and what is needed to ask it.

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
    """A base without an adapter, in evaluation mode, and what is needed to ask it."""

    model: PreTrainedModel
    encoder: Encoder
    precision: Precision


def load(folder: str | Path, *, precision: Precision | None = None, base: Base | None = None) -> LoadedAdapter:
    """Load an adapter onto its base, which may be resolved already.

    The default precision is that of the run where this machine can, else the machine's best.

    Raises:
        ModelError: A001 to A003, A015 for a folder that is not a whole adapter, A004, A017 for a base that is not the
            one it was trained on, M007, M151, M152 for one that is not whole.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    check_finite(folder)
    base = base or Base.resolve(manifest.recipe.base)
    check_base(manifest, base)
    check_tensors(folder, manifest, base)
    where = precision or again(manifest.precision)
    model = base.load(where, seed=manifest.seed)
    wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    to_fp32(wrapped)
    bare = fill_bare(wrapped, folder)
    encoder, _ = base.encoder(manifest.recipe.data, base.saved_processor(folder))
    agree(model, encoder.processor)
    return LoadedAdapter(wrapped.eval(), encoder.processor, encoder, manifest, where, bare)


def plain_base(name: str) -> BaseSection:
    """The section of a vision-language model as it comes: nothing quantised, its own chat template."""
    return BaseSection(model=name, quantize="none")


def load_base(base: Base, *, precision: Precision | None = None) -> LoadedBase:
    """Load a base alone; by default in this machine's best precision.

    Raises:
        ModelError: D030 and following for a processor that qlmm cannot ask.
    """
    where = precision or choose("auto", "auto")
    encoder, _ = base.encoder(DataSection(sources=(Source(path="-"),)))
    model = base.load(where, seed=0)
    agree(model, encoder.processor)
    return LoadedBase(model, encoder, where)


def check_files(folder: Path, manifest: Manifest, called: str | None = None) -> str:
    """Compare an adapter's files with its manifest; `called` is the adapter's name in messages, else the folder.

    Raises:
        ModelError: A003 naming the files that are missing or differ, or whose hash nobody wrote down; A038, M004 for
            settings that PEFT or transformers would build or run too much from.
    """
    called = called or str(folder)
    help = "fetch the adapter again, or take it from the run directory it was made in"
    wrong = [name for name in REQUIRED if not (folder / name).is_file()]
    there = {name: (folder / name).is_file() and file_sha256(folder / name) for name in manifest.files}
    wrong += [name for name, sha256 in manifest.files.items() if name not in wrong and there[name] != sha256]
    if wrong:
        message = f"{called} is not as it was written: {', '.join(wrong)} missing or changed"
        raise ModelError.one("A003", message, help=help)
    unknown = [name for name in (*REQUIRED, PROBE) if name not in manifest.files and (folder / name).is_file()]
    if unknown:
        raise ModelError.one("A003", f"{called}: {MANIFEST} has no hash of {', '.join(unknown)}", help=help)
    for path in sorted(folder.rglob("*.json")):
        if path.name not in VOCABULARIES:
            refuse_code(path)
    read_config(folder)
    return f"{len(manifest.files)} files are as they were written"


def check_base(manifest: Manifest, base: Base, *, commit: bool = False) -> str:
    """Refuse a base that is not the one the adapter was trained on.

    With `commit`, another commit is refused too: weights can change with no other sign.

    Raises:
        ModelError: A004 for another configuration, A005 for another commit, with what was recorded and what is there.
    """
    for one in manifest.base.differs(base.identity):
        then, now = one.recorded, one.present
        if one.field in ("part", "configuration"):
            name, revision = (then.id, then.revision) if then is not None else (base.name, None)
            message = f"{name} is not the {one.role} this adapter was trained on: its configuration differs"
            help = f"the adapter recorded revision {revision or 'none'}; pin it as id@revision"
            raise ModelError.one("A004", message, help=help)
        if one.field == "revision" and commit and then is not None and now is not None:
            message = f"{then.id} is at revision {now.revision} here; the adapter was trained on {then.revision}"
            help = f"fetch that revision: hf download {then.name} --revision {then.revision}"
            raise ModelError.one("A005", message, help=help)
    return ", ".join(part.id for part in manifest.base.parts.values())
