"""The zoo: small adapters that come with qlmm, each with its recipe, its measured results and its proof.

An entry is the adapter folder of a run. Large files that the base's processor writes anyway are left out: they are
written again on first use, beside copies of the others, and every one must have the hash that the run recorded.

Usage: ``loaded = load(complete("owl_kinds"))``
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from qlmm.artifacts.adapter.manifest import MANIFEST, Manifest, read_manifest, versions
from qlmm.artifacts.zoo.entry import Entry, HubWeights, entries, read_entry
from qlmm.core import env
from qlmm.core.errors import ModelError
from qlmm.core.files import file_sha256
from qlmm.recipe.schema import BaseSection
from qlmm.recipe.zoo import PREFIX, entry_folder

__all__ = ["WEIGHTS", "build", "complete", "located", "readme", "written_by_base"]

WEIGHTS = "adapter_model.safetensors"
CARD, TEMPLATE = "README.md", "chat_template.jinja"
Tell = Callable[[str], None]

_README = """\
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
`qlmm zoo list --markdown`.

| adapter | what it is | base | weights | held-out result | made in |
|---|---|---|---|---|---|
"""


def located(target: str) -> Path:
    """The folder that an adapter argument means: a completed entry for ``zoo:NAME``, else the path as it stands.

    Raises:
        UsageError: Z001 for an entry that does not exist.
        ModelError: Z002 to Z004 when it is damaged or cannot be completed here.
    """
    return complete(target.removeprefix(PREFIX)) if target.startswith(PREFIX) else Path(target)


def complete(name: str, tell: Tell = lambda line: None) -> Path:
    """An entry as a whole adapter folder, kept under ``QLMM_HOME``; made on first use, and again when it is damaged.

    Args:
        name: the entry's.
        tell: receives a line about what is going on.

    Raises:
        UsageError: Z001 for an unknown name.
        ModelError: Z002 for a damaged entry, Z003 for a file that changed, Z004 when the base's processor writes
            something else than it did for the run.
    """
    source = entry_folder(name)
    entry, manifest = read_entry(source), read_manifest(source)
    # The folder's own name is the entry's: whatever is made of it is called so.
    place = env.home() / "zoo" / _fingerprint(source) / source.name
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(env.home() / "zoo" / f"{source.name}.lock"):
        if not _is_whole(place, source, manifest):
            tell(f"completing {name}")
            _make(source, entry, place, tell)
    return place


def build(source: Path, entry: Entry, stage: Path, tell: Tell) -> None:
    """Put a whole adapter folder together from an entry.

    Args:
        source: the entry's folder.
        entry: its facts.
        stage: an empty folder.
        tell: receives a line about what is going on.

    Raises:
        ModelError: Z003, Z004 as :func:`complete`.
    """
    manifest = read_manifest(source)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and (name in manifest.files or name in (MANIFEST, CARD)):
            (stage / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, stage / name)
    if isinstance(entry.weights, HubWeights):
        shutil.copyfile(_fetched(entry.weights, tell), stage / WEIGHTS)
    _refuse_changed(source, stage, manifest)
    absent = [name for name in manifest.files if not (stage / name).is_file()]
    if absent:
        with tempfile.TemporaryDirectory() as aside:
            _write_processor(_base(manifest, stage), Path(aside))
            _take(Path(aside), stage, absent, manifest)


def written_by_base(adapter: Path, manifest: Manifest, least_bytes: int) -> set[str]:
    """Recorded files of at least so many bytes that the base's processor writes here just as it did for the run.

    Smaller ones hold settings of the surroundings, such as whether the Hub could be reached: they are no copies.
    """
    with tempfile.TemporaryDirectory() as aside:
        _write_processor(_base(manifest, adapter), Path(aside))
        files = [path for path in Path(aside).iterdir() if path.is_file() and path.stat().st_size >= least_bytes]
        return {path.name for path in files if manifest.files.get(path.name) == file_sha256(path)}


def readme() -> str:
    """The page adapters_zoo/README.md, its table made from the entries."""
    rows = []
    for name, entry in entries().items():
        base = " + ".join(f"`{part}`" for part in entry.base.values())
        minutes = f"{entry.minutes:.0f} minutes" if entry.minutes is not None else "an interrupted run"
        cells = [f"[`{name}`]({name}/README.md)", entry.summary, base, entry.size, entry.result, minutes]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return _README + "\n".join(rows) + "\n"


def _fingerprint(source: Path) -> str:
    """Changes with every byte of the entry, so that another version of it never meets an older copy."""
    files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}
    hashes = {name: file_sha256(path) for name, path in files.items()}
    return sha256(json.dumps(hashes).encode()).hexdigest()[:12]


def _is_whole(place: Path, source: Path, manifest: Manifest) -> bool:
    """Whether a copy has every file of the run, and the manifest and card of the entry."""
    papers = {name: file_sha256(source / name) for name in (MANIFEST, CARD) if (source / name).is_file()}
    files = {place / name: digest for name, digest in (manifest.files | papers).items()}
    return all(path.is_file() and file_sha256(path) == digest for path, digest in files.items())


def _make(source: Path, entry: Entry, place: Path, tell: Tell) -> None:
    from qlmm.artifacts.adapter.folder import publish

    stage = place.with_name(f".{place.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        build(source, entry, stage, tell)
        publish(stage, place, replace=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _fetched(weights: HubWeights, tell: Tell) -> Path:
    from qlmm.artifacts.hub.connection import talking

    tell(f"fetching the weights from {weights.id}")
    with talking(weights.id, "run the same command again", tell) as hub:
        return Path(hub.ask(lambda api: api.hf_hub_download(weights.id, WEIGHTS, revision=weights.commit)))


def _refuse_changed(source: Path, stage: Path, manifest: Manifest) -> None:
    there = {name: digest for name, digest in manifest.files.items() if (stage / name).is_file()}
    changed = [name for name, digest in there.items() if file_sha256(stage / name) != digest]
    if WEIGHTS not in there:
        changed.append(WEIGHTS)
    if changed:
        help = "take the folder from the repository again; what a file should be stands in its qlmm.json"
        message = f"{source} is not as its run wrote it: {', '.join(changed)} missing or changed"
        raise ModelError.one("Z003", message, help=help)


def _base(manifest: Manifest, adapter: Path) -> BaseSection:
    """The base as the run had it; a chat template that lay with its maker is taken from the adapter, which keeps it."""
    base = manifest.recipe.base
    if base.chat_template is not None and base.chat_template.endswith(".jinja"):
        return base.model_copy(update={"chat_template": str(adapter / TEMPLATE)})
    return base


def _write_processor(base: BaseSection, folder: Path) -> None:
    from qlmm.model.loading.base import Base

    Base.resolve(base).processor.save_pretrained(str(folder))


def _take(written: Path, stage: Path, absent: list[str], manifest: Manifest) -> None:
    """Move the files that are missing from what the base's processor wrote.

    Raises:
        ModelError: Z004 naming those that are missing there or differ.
    """
    names = {path.name for path in written.iterdir()}
    wrong = [name for name in absent if name not in names or file_sha256(written / name) != manifest.files[name]]
    if wrong:
        then, now = (found.get("transformers", "unknown") for found in (manifest.versions, versions()))
        raise ModelError.one(
            "Z004",
            f"the base's processor does not write {', '.join(wrong)} as it did for the run "
            f"(transformers {then} then, {now} now)",
            help=f"install transformers {then}, or make the adapter again by its recipe.yaml",
        )
    for name in absent:
        shutil.copyfile(written / name, stage / name)
