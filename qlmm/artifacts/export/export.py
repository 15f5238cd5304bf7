"""An adapter, made ready for a program that is not qlmm: what gets lost is reported, that nothing else did is proven.

Every target is one file of `qlmm/artifacts/export/targets`. This file does what all of them need: it checks the adapter
and the place, reports what the target drops, writes beside the place, and renames.

Usage: ``export("runs/x", "vllm", Path("served"), Wishes())``
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlmm.artifacts.adapter.base_files import sources_of
from qlmm.artifacts.adapter.folder import run_name
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.adapter.verify import check_adapter, check_fits
from qlmm.artifacts.merge.deltas import Way
from qlmm.artifacts.zoo.find import find_adapter
from qlmm.core.filenames import CARD
from qlmm.core.files import atomic_write
from qlmm.core.naming import load
from qlmm.core.staging import check_place, check_room, publish, staged
from qlmm.core.version import __version__
from qlmm.model.loading.base import Base

__all__ = ["EXPORTS", "Export", "Exported", "Job", "Plan", "Wishes", "Written", "base_drops", "export"]

EXPORTS = "qlmm.artifacts.export.targets"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asks for.

    Attributes:
        onto: the base that weights are merged into, see `qlmm merge`.
        outtype: how GGUF files store weights.
        converter: llama.cpp's own converter, for models that qlmm does not know.
    """

    onto: Way = "trained"
    outtype: str = "f16"
    converter: Path | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One export: an adapter folder, what is wished for, a name where one is needed; `tell` receives lines."""

    folder: Path
    manifest: Manifest
    base: Base
    wishes: Wishes
    name: str
    tell: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the target loses or does otherwise, a sentence each, and the bytes of disk that are needed on the way."""

    drops: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Written:
    """What was compared and found equal, a sentence each, and the shell's lines that use the folder at its place."""

    proof: tuple[str, ...]
    commands: Callable[[str], tuple[str, ...]] = lambda place: ()


@dataclass(frozen=True, slots=True)
class Export:
    """The contract of a file in `qlmm/artifacts/export/targets`.

    Attributes:
        doc: what it makes, as it follows "Makes".
        plan: makes every check, and finds what gets lost; nothing is written and no weight is read.
        write: makes the export in the first folder, which is empty, and proves it; the second is for work on the way.
    """

    doc: str
    plan: Callable[[Job], Plan]
    write: Callable[[Job, Path, Path], Written]


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    drops: tuple[str, ...]
    proof: tuple[str, ...]
    commands: tuple[str, ...]


def export(
    source: str, to: str, out: Path, wishes: Wishes, tell: Callable[[str], None] = lambda line: None
) -> Exported:
    """Export an adapter.

    Args:
        source: adapter folder, run directory or Hub id.
        to: the target's name.
        out: the folder to make; it appears when everything is in it and proven.
        wishes: what else is asked for.
        tell: receives what the target drops, and a line about what is going on.

    Raises:
        UsageError: everything that stands against it; nothing was written by then.
        RunError: E005, E023 when the export is not what it should be; nothing is left then.
        OSError: when the disk refuses; nothing is left then.
    """
    target, folder = load(EXPORTS, to, "EXPORT", Export), find_adapter(source)
    manifest = check_adapter(folder)
    check_place(out, sources_of(folder, manifest))
    base = Base.resolve(manifest.recipe.base)
    check_fits(folder, manifest, base)
    job = Job(folder, manifest, base, wishes, _name(source, folder), tell)
    plan = target.plan(job)
    check_room(out, plan.size)
    for drop in plan.drops:
        tell(f"note: {drop}")
    with staged(out) as stage:
        made, way = stage / "made", stage / "way"
        made.mkdir()
        way.mkdir()
        written = target.write(job, made, way)
        _write_readme(made / CARD, to, job, plan, written)
        publish(made, out.absolute())
    return Exported(out, plan.drops, written.proof, written.commands(str(out)))


def base_drops(job: Job) -> tuple[str, ...]:
    """What differs from the run because of the base that the adapter is put on."""
    quantize = job.manifest.recipe.base.quantize
    if quantize != "none" and job.wishes.onto == "original":
        return (
            f"the adapter was trained on the {quantize} form of its base and gets the published weights: answers "
            "differ a little from those of the run; --onto trained keeps them",
        )
    if quantize == "int8":
        return (
            "layers in int8 also round what they multiply, which no weight can repeat: answers differ a little from "
            "those of the run",
        )
    return ()


def _name(source: str, folder: Path) -> str:
    """The source's name, in characters that Ollama and vLLM take."""
    name = run_name(folder) if Path(source).is_dir() else source.partition("@")[0].rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "adapter"


def _write_readme(path: Path, to: str, job: Job, plan: Plan, written: Written) -> None:
    """Write what is in the folder as a page; a card that is there already goes on with it."""
    if path.is_file():
        begin = path.read_text("utf-8").rstrip()
    else:
        parts = ", ".join(f"{role} `{part.id}`" for role, part in job.manifest.base.parts.items())
        made = f"Made by qlmm {__version__} from an adapter of {job.manifest.steps} steps on {parts}."
        begin = f"# {job.name} for {to}\n\n{made}"
    sections = [begin, "## What gets lost\n\n" + ("\n".join(f"- {one}." for one in plan.drops) or "Nothing.")]
    sections += ["## Compared after the export\n\n" + "\n".join(f"- {one}." for one in written.proof)]
    if lines := "\n".join(written.commands(".")):
        sections += [f"## Commands\n\n```bash\n{lines}\n```"]
    atomic_write(path, "\n\n".join(sections) + "\n")
