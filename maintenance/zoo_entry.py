"""Makes an entry of the zoo from a finished run, and checks that entries agree with their runs.

Nothing is taken out of an adapter here: what the zoo keeps is what the run wrote, so that its hashes still hold.

Usage: ``python -m maintenance.zoo_entry add runs/mine mine --summary "Knows colours" --licence "Apache-2.0"``, then
``python -m maintenance.zoo_entry check``
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qlmm.artifacts.adapter.load import check_files
from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.artifacts.hub.package import pack
from qlmm.artifacts.zoo.catalogue import base_of, complete_into, write_processor
from qlmm.artifacts.zoo.entry import Facts, Rebuilt, entries, read_entry
from qlmm.artifacts.zoo.find import find_adapter
from qlmm.core.errors import ModelError, QlmmError, UsageError
from qlmm.core.events import Finished, Resumed
from qlmm.core.filenames import ADAPTER_WEIGHTS, CARD, LOCAL_RECIPE, MANIFEST, RUN_RECORD
from qlmm.core.files import atomic_write, file_sha256
from qlmm.core.naming import NAME_RULE
from qlmm.core.staging import emptied, publish
from qlmm.recipe import zoo as shelf
from qlmm.recipe.library import ZOO_RECIPE
from qlmm.recipe.load import as_yaml, load_recipe
from qlmm.training.logbook import read_metrics
from qlmm.training.run_dir import read_record

__all__ = ["Request", "add", "check", "page"]

# Below this a file is not worth writing again, see `_written_by_base`.
LEAST_COPY_BYTES = 256 * 1024
# A repository is cloned whole: weights beyond this belong on the Hub.
MOST_BYTES = 5_000_000


_PAGE = """\
# Adapters

Small adapters that come with qlmm: each was trained by one command on a CPU, from nothing but packaged weights and
pictures. They are examples to try, to compare with, and to start from; they know kinds of emoji and nothing else.

```bash
qlmm zoo list
qlmm zoo run owl_kinds                        # asks it about pictures it was not trained on
qlmm zoo show owl_kinds                       # card, results, the command that makes it again
qlmm zoo verify                               # hashes, and the recorded logits, of every entry
qlmm finetune zoo:owl_kinds                   # trains it again, in the folder you are in
qlmm ask zoo:owl_kinds --image cat.png "What kind of thing is this?"
```

`gap` is what the right picture is worth against another row's, in nats per token of a held-out answer; 0 would mean
that the picture is ignored. How an entry is made: `docs/zoo.md`. This page is made from the entries by
`python -m maintenance.zoo_entry page`.

| adapter | what it is | base | weights | held-out result | made in |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be added.

    Attributes:
        target: the run, or its adapter folder.
        name: of the new entry.
        summary: what the adapter is, in one line.
        licence: of the adapter, and of what it was made from, in one line.
        machine: what the run computed on, in one line; None as its record says.
        again: a second run of the same recipe, whose weights are compared.
    """

    target: str
    name: str
    summary: str
    licence: str
    machine: str | None = None
    again: str | None = None


def add(request: Request) -> Path:
    """Make an entry of a run's adapter; it appears in one rename, after it was completed from its own files once.

    Raises:
        UsageError: A012, Z010 for a run that is not finished and proven, Z011 for a name that is taken or malformed,
            Z012 for weights that are too large, Z013 for local paths.
        ModelError: H010, H011 for what could not be shared, or whatever keeps the entry from being completed.
    """
    place = _place(request.name)
    adapter = find_adapter(request.target)
    manifest = read_manifest(adapter, local=False)
    check_files(adapter, manifest)
    _refuse_unproven(adapter, manifest)
    _refuse_large(adapter)
    _refuse_local(adapter, request.name)
    facts = Facts(
        summary=request.summary,
        minutes=_minutes(adapter.parent),
        machine=request.machine or _machine(adapter.parent),
        rebuilt=_rebuilt(request.again, adapter),
        licence=request.licence,
    )
    stage = emptied(place.with_name(f".{request.name}.part"))
    try:
        _write(stage, adapter, manifest, facts, request.name)
        with tempfile.TemporaryDirectory() as whole:
            complete_into(Path(whole), stage)
        return publish(stage, place)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check(source: Path) -> None:
    """Compare an entry's facts and recipe with the manifest of its run; hashes are for ``qlmm zoo verify``.

    Raises:
        ModelError: Z020 where they differ, Z002 or A002 where one cannot be read.
    """
    entry = read_entry(source)
    manifest, rebuilt = entry.manifest, entry.facts.rebuilt
    weights = manifest.files[ADAPTER_WEIGHTS]
    wrong = {
        "the run's proof does not hold": not manifest.proven_by.holds,
        "nothing was measured on held-out rows": not entry.result,
        "entry.json and the hash of the weights made again disagree": rebuilt is not None
        and rebuilt.equal is not (rebuilt.sha256 == weights),
        "recipe.yaml is not the recipe of the run": load_recipe(source / ZOO_RECIPE).recipe != manifest.recipe,
    }
    for what, holds in wrong.items():
        if holds:
            raise ModelError.one("Z020", f"{source.name}: {what}", help="make the entry again, never by hand")


def _place(name: str) -> Path:
    if not re.fullmatch(NAME_RULE, name):
        help = "small letters, digits and _, a letter first, such as owl_kinds"
        raise UsageError.one("Z011", f"`{name}` is not a name for an adapter of the zoo", help=help)
    place = shelf.folder() / name
    if place.exists():
        help = "take another name, or delete that folder first; nothing is overwritten"
        raise UsageError.one("Z011", f"the zoo has `{name}` already", help=help)
    return place


def _refuse_unproven(adapter: Path, manifest: Manifest) -> None:
    if not (adapter.parent / RUN_RECORD).is_file():
        help = "name the run directory; its record says how long the run took, and on what"
        raise UsageError.one("Z010", f"{adapter} does not lie in the directory of its run", help=help)
    if not manifest.proven_by.holds:
        help = "the report of the run says which promise was broken"
        raise UsageError.one("Z010", f"{adapter} is not proven, and the zoo shows nothing else", help=help)


def _refuse_large(adapter: Path) -> None:
    size = (adapter / ADAPTER_WEIGHTS).stat().st_size
    if size > MOST_BYTES:
        message = f"the weights take {size / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that may lie here"
        raise UsageError.one("Z012", message, help="train fewer parameters, or qlmm push the adapter instead")


def _refuse_local(adapter: Path, name: str) -> None:
    """Refuse what nobody else has, by the rules of a push: a base in a folder, a path, an access key."""
    help = "train again with paths relative to the folder you start from, and models and data by name"
    if (adapter / LOCAL_RECIPE).exists() or pack(adapter, f"zoo/{name}", unproven=False).local_base:
        raise UsageError.one("Z013", f"{adapter} has paths of this machine: its base, its rows or its place", help=help)


def _minutes(run: Path) -> float | None:
    """The length of the run; unknown when it was continued, because only its last stretch was timed."""
    events = read_metrics(run / "metrics.jsonl")
    seconds = [event.seconds for event in events if isinstance(event, Finished)]
    continued = any(isinstance(event, Resumed) for event in events)
    return round(seconds[-1] / 60, 1) if seconds and not continued else None


def _machine(run: Path) -> str:
    record = read_record(run)
    return f"{record.plan.device}, {record.plan.precision}" if record is not None else "unknown"


def _rebuilt(again: str | None, adapter: Path) -> Rebuilt | None:
    if again is None:
        return None
    other = find_adapter(again)
    if other.resolve() == adapter.resolve():
        raise UsageError.one("Z015", "--again names the same run", help="name a second run of the recipe")
    digest = file_sha256(other / ADAPTER_WEIGHTS)
    return Rebuilt(equal=digest == file_sha256(adapter / ADAPTER_WEIGHTS), sha256=digest)


def _write(stage: Path, adapter: Path, manifest: Manifest, facts: Facts, name: str) -> None:
    left_out = _written_by_base(adapter, manifest)
    for file in (*manifest.files, MANIFEST, CARD):
        if file not in left_out:
            (stage / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(adapter / file, stage / file)
    head = f"# {facts.summary}\n#\n# run: qlmm finetune {shelf.PREFIX}{name}\n"
    atomic_write(stage / ZOO_RECIPE, head + as_yaml(manifest.recipe))
    atomic_write(stage / shelf.ENTRY, facts.model_dump_json(indent=1) + "\n")


def _written_by_base(adapter: Path, manifest: Manifest) -> set[str]:
    """Recorded files that the base's processor writes here just as it did for the run.

    Smaller ones hold settings of the surroundings, such as whether the Hub could be reached: they are no copies.
    """
    with tempfile.TemporaryDirectory() as aside:
        write_processor(base_of(manifest, adapter), Path(aside))
        files = [path for path in Path(aside).iterdir() if path.is_file() and path.stat().st_size >= LEAST_COPY_BYTES]
        return {path.name for path in files if manifest.files.get(path.name) == file_sha256(path)}


def page() -> str:
    """The page adapters_zoo/README.md, its table made from the entries."""
    rows = []
    for name, entry in entries().items():
        base = " + ".join(f"`{part}`" for part in entry.base.values())
        minutes = f"{entry.facts.minutes:.0f} minutes" if entry.facts.minutes is not None else "an interrupted run"
        cells = [f"[`{name}`]({name}/README.md)", entry.facts.summary, base, entry.size, entry.result, minutes]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return _PAGE + "\n".join(rows) + "\n"


def _main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m maintenance.zoo_entry", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="make an entry of a finished run")
    adding.add_argument("target", help="a finished run, or its adapter folder")
    adding.add_argument("name", help="name of the new entry")
    adding.add_argument("--summary", required=True, help="what it is, in one line")
    adding.add_argument("--licence", required=True, help="its licence, and that of its base")
    adding.add_argument("--machine", help="what the run computed on; unset: as it says")
    adding.add_argument("--again", metavar="RUN", help="a second run of the recipe, to compare weights with")
    commands.add_parser("page", help="print adapters_zoo/README.md")
    commands.add_parser("check", help="compare every entry with the manifest of its run")
    asked = vars(parser.parse_args(words))
    try:
        command = asked.pop("command")
        if command == "page":
            print(page(), end="")
        elif command == "add":
            print(add(Request(**asked)))
            print(
                "bring the page up to date: python -m maintenance.zoo_entry page > adapters_zoo/README.md",
                file=sys.stderr,
            )
        else:
            for source in shelf.shipped().values():
                check(source)
                print(f"{source.name}: facts and recipe are those of the run")
    except QlmmError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
