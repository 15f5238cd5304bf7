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

from qlmm.artifacts.adapter.manifest import Manifest, read_manifest, versions
from qlmm.artifacts.zoo.entry import read_entry
from qlmm.core import env
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_WEIGHTS, CARD, CHAT_TEMPLATE, MANIFEST
from qlmm.core.files import file_sha256
from qlmm.core.staging import publish, staged
from qlmm.recipe.schema import BaseSection
from qlmm.recipe.zoo import PREFIX, entry_folder

__all__ = ["base_of", "complete", "complete_into", "located", "write_processor"]

Tell = Callable[[str], None]


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
    read_entry(source)
    manifest = read_manifest(source)
    # The folder's own name is the entry's: what is made of it gets that name.
    place = env.home() / "zoo" / _fingerprint(source) / source.name
    place.parent.mkdir(parents=True, exist_ok=True)
    # Another process that completes the entry is waited for, not refused.
    with FileLock(env.home() / "zoo" / f"{source.name}.lock"):
        if not _is_whole(place, source, manifest):
            tell(f"completing {name}")
            with staged(place) as stage:
                complete_into(stage, source)
                publish(stage, place, replace=True)
    return place


def complete_into(stage: Path, source: Path) -> None:
    """Put a whole adapter folder together from an entry.

    Args:
        stage: an empty folder.
        source: the entry's folder.

    Raises:
        ModelError: Z003, Z004 as :func:`complete`.
    """
    manifest = read_manifest(source)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and (name in manifest.files or name in (MANIFEST, CARD)):
            (stage / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, stage / name)
    _refuse_changed(source, stage, manifest)
    absent = [name for name in manifest.files if not (stage / name).is_file()]
    if absent:
        with tempfile.TemporaryDirectory() as aside:
            write_processor(base_of(manifest, stage), Path(aside))
            _take(Path(aside), stage, absent, manifest)


def _fingerprint(source: Path) -> str:
    """Changes with every byte of the entry, so that another version of it never meets an older copy."""
    files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}
    hashes = {name: file_sha256(path) for name, path in files.items()}
    return sha256(json.dumps(hashes).encode()).hexdigest()[:12]


def _is_whole(place: Path, source: Path, manifest: Manifest) -> bool:
    """Whether a copy has every file of the run, and the manifest and card of the entry."""
    unhashed = {name: file_sha256(source / name) for name in (MANIFEST, CARD) if (source / name).is_file()}
    files = {place / name: digest for name, digest in (manifest.files | unhashed).items()}
    return all(path.is_file() and file_sha256(path) == digest for path, digest in files.items())


def _refuse_changed(source: Path, stage: Path, manifest: Manifest) -> None:
    there = {name: digest for name, digest in manifest.files.items() if (stage / name).is_file()}
    changed = [name for name, digest in there.items() if file_sha256(stage / name) != digest]
    if ADAPTER_WEIGHTS not in there:
        changed.append(ADAPTER_WEIGHTS)
    if changed:
        help = "take the folder from the repository again; what a file should be stands in its qlmm.json"
        message = f"{source} is not as its run wrote it: {', '.join(changed)} missing or changed"
        raise ModelError.one("Z003", message, help=help)


def base_of(manifest: Manifest, adapter: Path) -> BaseSection:
    """The base as the run had it; a chat template that lay with its maker is taken from the adapter, which keeps it."""
    base = manifest.recipe.base
    if base.chat_template is not None and base.chat_template.endswith(".jinja"):
        return base.model_copy(update={"chat_template": str(adapter / CHAT_TEMPLATE)})
    return base


def write_processor(base: BaseSection, folder: Path) -> None:
    """Write the files of a base's processor into a folder."""
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
