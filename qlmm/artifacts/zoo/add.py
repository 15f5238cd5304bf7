"""How a run's adapter becomes an entry of the zoo: refused unless it is proven, small, and free of local paths.

Nothing is taken out of an adapter here: what the zoo keeps is what the run wrote, so that its hashes still hold.

Usage: ``folder = add(Request("runs/owl_kinds", "owl_kinds", summary="…", licence="…"))``
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from qlmm.artifacts.adapter.folder import publish
from qlmm.artifacts.adapter.load import check_files
from qlmm.artifacts.adapter.manifest import MANIFEST, Manifest, read_manifest
from qlmm.artifacts.adapter.verify import find_adapter
from qlmm.artifacts.hub.package import proof_of
from qlmm.artifacts.hub.scrub import scrub
from qlmm.artifacts.zoo.catalogue import WEIGHTS, build, written_by_base
from qlmm.artifacts.zoo.entry import MOST_BYTES, Entry, HubWeights, Rebuilt, Results
from qlmm.core.errors import Problem, UsageError
from qlmm.core.events import Finished, Resumed
from qlmm.core.files import atomic_write, file_sha256
from qlmm.core.naming import NAME_RULE
from qlmm.proof.records import PlanFacts, Proof, from_json
from qlmm.recipe import zoo as shelf
from qlmm.recipe.library import ZOO_RECIPE
from qlmm.recipe.load import as_yaml
from qlmm.training.logbook import read_metrics
from qlmm.training.run_dir import RECORD

__all__ = ["Request", "add"]

PACKAGE = Path(__file__).resolve().parents[2]
CARD = "README.md"
# Below this a file is not worth writing again, see `written_by_base`.
LEAST_COPY_BYTES = 256 * 1024
# Weights, pictures, and words of the base's tokenizer, any of which may look like a path; every other file is text.
_NO_TEXT = re.compile(r".*\.(?:safetensors|png|model|tiktoken|spm)|tokenizer\.json|vocab\..*|merges\.txt")
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be added.

    Attributes:
        target: the run, or its adapter folder.
        name: of the new entry.
        summary: what the adapter is, in one line.
        licence: of the adapter, and of what it was made from, in one line.
        machine: what the run computed on, in one line; None as its record says.
        hub: ``id@commit`` where the weights lie, for those too large for the repository.
        again: a second run of the same recipe, whose weights are compared.
    """

    target: str
    name: str
    summary: str
    licence: str
    machine: str | None = None
    hub: str | None = None
    again: str | None = None


def add(request: Request, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Make an entry of a run's adapter; it appears in one rename, after it was completed from its own files once.

    Raises:
        UsageError: A012, Z010 for a run that is not finished and proven, Z011 for a name that is taken or none, Z012
            for weights that are too large, Z013 for local paths or access keys, Z014 for a wrong ``hub``, Z015 for
            facts that make no entry, Z016 where this qlmm is no checkout.
        ModelError: whatever keeps the entry from being completed.
    """
    place = _place(request.name)
    adapter = find_adapter(request.target)
    manifest = read_manifest(adapter)
    check_files(adapter, manifest)
    proof = _proof(adapter, manifest)
    weights = _weights(request.hub, adapter)
    _refuse_local(adapter, manifest)
    entry = _entry(request, adapter, manifest, proof, weights)
    stage = place.with_name(f".{request.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        _write(stage, adapter, manifest, entry)
        tell("completing the entry from its own files")
        with tempfile.TemporaryDirectory() as whole:
            build(stage, entry, Path(whole), tell)
        return publish(stage, place)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _place(name: str) -> Path:
    if not re.fullmatch(NAME_RULE, name):
        help = "small letters, digits and _, a letter first, such as owl_kinds"
        raise UsageError.one("Z011", f"`{name}` is no name for an adapter of the zoo", help=help)
    zoo = shelf.folder()
    if PACKAGE in zoo.parents or not os.access(zoo, os.W_OK):
        help = "clone the repository, `pip install -e .` in it, and run the same command again"
        raise UsageError.one("Z016", f"entries are added to a checkout of qlmm; {zoo} cannot take one", help=help)
    place = zoo / name
    if place.exists():
        help = "take another name, or delete that folder first; nothing is overwritten"
        raise UsageError.one("Z011", f"the zoo has `{name}` already", help=help)
    return place


def _proof(adapter: Path, manifest: Manifest) -> Proof:
    if not (adapter.parent / RECORD).is_file():
        help = "name the run directory; its record says how long the run took, and on what"
        raise UsageError.one("Z010", f"{adapter} does not lie in the directory of its run", help=help)
    proof = proof_of(manifest)
    if not proof.holds:
        help = "the report of the run says which promise was broken"
        raise UsageError.one("Z010", f"{adapter} is not proven, and the zoo shows nothing else", help=help)
    return proof


def _weights(hub: str | None, adapter: Path) -> HubWeights | None:
    """Where on the Hub the weights are; None is here."""
    size = (adapter / WEIGHTS).stat().st_size
    if hub is None and size > MOST_BYTES:
        raise UsageError.one(
            "Z012",
            f"the weights take {size / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that may lie here",
            help="qlmm push them, then name the commit: --hub user/name@COMMIT; or train fewer parameters",
        )
    found = _PINNED.fullmatch(hub) if hub is not None else None
    if hub is not None and found is None:
        help = "write user/name@COMMIT with all 40 digits; a branch may change"
        raise UsageError.one("Z014", f"--hub: `{hub}` does not name a commit", help=help)
    return HubWeights(id=found[1], commit=found[2]) if found is not None else None


def _refuse_local(adapter: Path, manifest: Manifest) -> None:
    """Stop at what nobody else has: a base in a folder, a path or an access key in any text that is copied."""
    parts = manifest.base.parts.values()
    problems = [
        Problem("Z013", f"the base {part.id} is a folder of this machine", help=_LOCAL) for part in parts if part.local
    ]
    commits = {part.revision for part in parts if part.revision}
    commits |= {commit for _, commit in _PINNED.findall(manifest.model_dump_json())}
    for name in (*manifest.files, MANIFEST, CARD):
        if not _NO_TEXT.fullmatch(name.rpartition("/")[2]):
            problems += _local(adapter, name, commits)
    if problems:
        raise UsageError(problems)


def _local(adapter: Path, name: str, commits: Iterable[str]) -> Iterator[Problem]:
    """What a file holds of this machine or its user."""
    try:
        text = (adapter / name).read_bytes().decode("utf-8")
        for commit in commits:
            # Whole, a commit cannot be told from an access key.
            text = text.replace(commit, commit[:7])
        value = json.loads(text) if name.endswith(".json") else text.splitlines()
    except ValueError as error:
        help = "train again, or say what wrote it; only what can be looked into is taken"
        yield Problem("Z013", f"{name} cannot be read: {error}", help=help)
        return
    for one in scrub(value, name)[1]:
        yield Problem("Z013", f"{one.where} names something of this machine: {one.before}", help=_LOCAL)


def _entry(request: Request, adapter: Path, manifest: Manifest, proof: Proof, weights: HubWeights | None) -> Entry:
    connector = manifest.base.connector
    parts = {role: part.id for role, part in manifest.base.parts.items()}
    try:
        return Entry(
            summary=request.summary,
            command=f"qlmm finetune {shelf.PREFIX}{request.name}",
            weights=weights or "here",
            size_bytes=(adapter / WEIGHTS).stat().st_size,
            trained=sum(part.trained_parameters for part in proof.parts),
            base=parts | ({"connector": connector.kind} if connector is not None else {}),
            results=Results(
                before=proof.before, after=proof.after, pairs_before=proof.pairs_before, pairs_after=proof.pairs_after
            ),
            minutes=_minutes(adapter.parent),
            machine=request.machine or _machine(adapter.parent),
            rebuilt=_rebuilt(request.again, adapter),
            licence=request.licence,
        )
    except ValidationError as error:
        problems = [
            Problem("Z015", f"{'.'.join(map(str, one['loc'])) or 'entry'}: {one['msg']}")
            for one in error.errors(include_input=False)
        ]
        raise UsageError(problems) from error


def _minutes(run: Path) -> float | None:
    """The length of the run; unknown when it was continued, because only its last stretch was timed."""
    events = read_metrics(run / "metrics.jsonl")
    seconds = [event.seconds for event in events if isinstance(event, Finished)]
    continued = any(isinstance(event, Resumed) for event in events)
    return round(seconds[-1] / 60, 1) if seconds and not continued else None


def _machine(run: Path) -> str:
    plan = from_json(PlanFacts, json.loads((run / RECORD).read_bytes())["plan"])
    return f"{plan.device}, {plan.precision}"


def _rebuilt(again: str | None, adapter: Path) -> Rebuilt | None:
    if again is None:
        return None
    other = find_adapter(again)
    if other.resolve() == adapter.resolve():
        raise UsageError.one("Z015", "--again names the same run", help="name a second run of the recipe")
    digest = file_sha256(other / WEIGHTS)
    return Rebuilt(equal=digest == file_sha256(adapter / WEIGHTS), sha256=digest)


def _write(stage: Path, adapter: Path, manifest: Manifest, entry: Entry) -> None:
    left_out = written_by_base(adapter, manifest, LEAST_COPY_BYTES)
    if entry.weights != "here":
        left_out.add(WEIGHTS)
    for name in (*manifest.files, MANIFEST, CARD):
        if name not in left_out:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(adapter / name, stage / name)
    head = f"# {entry.summary}\n#\n# run: {entry.command}\n"
    atomic_write(stage / ZOO_RECIPE, head + as_yaml(manifest.recipe))
    atomic_write(stage / shelf.ENTRY, entry.model_dump_json(indent=1) + "\n")


_LOCAL = "train again with paths relative to the folder you start from, and models and data by name; nothing is cut out"
