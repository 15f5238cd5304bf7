"""Is an adapter what it says it is? Every claim that can be checked is checked, and what cannot be is said so.

Files and tensors are looked at first: nothing is loaded from a folder that is not as written. What needs the base is
"not checked" where the base cannot be had, which is never counted as passed.

Usage: ``verdict = verify("runs/owl_lora"); verdict.holds``
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from qlmm.artifacts.adapter.load import check_base, check_files, load
from qlmm.artifacts.adapter.manifest import MANIFEST, Manifest, read_manifest
from qlmm.artifacts.adapter.tensors import check_tensors
from qlmm.artifacts.zoo.catalogue import located
from qlmm.core.errors import ModelError, QlmmError, UsageError
from qlmm.model.loading.base import Base
from qlmm.model.peft.adapter import ADAPTER_WEIGHTS
from qlmm.proof.probe import check_answers
from qlmm.training.run_dir import RECORD

__all__ = ["Check", "Verdict", "check_finite", "check_no_pickle", "find_adapter", "verify"]

Status = Literal["ok", "failed", "not checked"]

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
# Protocols 2 to 5 begin with their number; older ones have no mark, and no loader takes them without their suffix.
PICKLE_MARKS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
# What the base could not be had for: not there, remote code, a package, a licence, packaged weights.
NO_BASE = ("M003", "M004", "M005", "M006", "B001", "B002", "B003", "B004", "B005")
# All that an adapter of ours consists of; whatever else lies in a repository is not fetched.
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.spm", "*.md", ADAPTER_WEIGHTS, "held-out/*.png")


@dataclass(frozen=True, slots=True)
class Check:
    """One claim: its name, how it went, what was found, and what to do if it failed."""

    name: str
    status: Status
    found: str
    help: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of one adapter folder."""

    folder: Path
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim was checked and is true."""
        return all(check.status == "ok" for check in self.checks)


def verify(target: str, *, tell: Callable[[str], None] = lambda line: None) -> Verdict:
    """Check an adapter folder, the adapter of a run directory, or one on the Hub.

    Args:
        target: folder or Hub id (``id@revision`` pins it).
        tell: receives a line about what is going on.

    Raises:
        UsageError: A001, A002 for what is no adapter, A012 for a run that has none, A013 when the Hub has none.
    """
    folder = find_adapter(target)
    manifest = read_manifest(folder)
    folder_checks = (
        _check("files", lambda: _files(folder, manifest)),
        _check("no pickle", lambda: check_no_pickle(folder)),
        _check("values", lambda: check_finite(folder)),
    )
    tell("looking at the base")
    found: list[Base] = []
    base = _check("base", lambda: _base(manifest, found))
    if base.status == "not checked":
        why = "the base is not at hand"
    elif any(one.status != "ok" for one in (*folder_checks, base)):
        why = "nothing is loaded from what is not as it was written"
    else:
        tell("loading base and adapter")
        tensors = _check("tensors", lambda: check_tensors(folder, manifest, found[0]))
        fit = tensors.status == "ok"
        answers = (
            _check("answers", lambda: _answers(folder, found[0]))
            if fit
            else _unchecked("answers", "the tensors do not fit")
        )
        return Verdict(folder, (*folder_checks, base, tensors, answers))
    return Verdict(folder, (*folder_checks, base, *(_unchecked(name, why) for name in ("tensors", "answers"))))


def _unchecked(name: str, why: str) -> Check:
    return Check(name, "not checked", why)


def find_adapter(target: str) -> Path:
    """The adapter folder that a command names.

    Raises:
        UsageError: A012 for a run without a finished adapter, A013 when it cannot be had from the Hub.
    """
    path = located(target)
    if path.is_dir():
        if (path / MANIFEST).is_file() or not (path / RECORD).is_file():
            return path
        return _of_run(path)
    if target.count("/") != 1 or target.startswith((".", "/", "~")):
        raise UsageError.one("A001", f"there is no folder {target}", help="name an adapter folder, a run or a Hub id")
    return _from_hub(target)


def _of_run(run: Path) -> Path:
    if (run / "adapter" / MANIFEST).is_file():
        return run / "adapter"
    if (run / "adapter-UNPROVEN" / MANIFEST).is_file():
        raise UsageError.one(
            "A012",
            f"the run {run} broke a promise: it has no proven adapter",
            help=f"{run / 'report.html'} says which; to look at it all the same, name {run / 'adapter-UNPROVEN'}",
        )
    raise UsageError.one(
        "A012", f"the run {run} is not finished: it has no adapter", help="qlmm finetune with its recipe goes on"
    )


def _from_hub(target: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, revision = target.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UsageError.one(
            "A013",
            f"{target} is neither a folder here nor an adapter in the cache, and the Hub cannot be reached",
            help="check the spelling; offline (HF_HUB_OFFLINE=1) only adapters already in the cache are found",
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError.one(
            "A013", f"{target} cannot be had from the Hub: {reason}", help="for a private one run `hf auth login`"
        ) from error


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except QlmmError as error:
        problem = error.problems[0]
        status: Status = "not checked" if problem.code in NO_BASE else "failed"
        return Check(name, status, problem.message, problem.help or "")


def _files(folder: Path, manifest: Manifest) -> str:
    check_files(folder, manifest)
    return f"{len(manifest.files)} files are as they were written"


def check_no_pickle(folder: Path) -> str:
    """Refuse a folder that holds a file which runs code when it is loaded.

    Raises:
        ModelError: A014 with its name.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = [path.relative_to(folder).as_posix() for path in files if _is_pickle(path)]
    if found:
        raise ModelError.one(
            "A014",
            f"{folder} holds pickle, which runs code when it is loaded: {', '.join(found)}",
            help="delete it; qlmm itself writes safetensors only",
        )
    return f"none in {len(files)} files"


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in PICKLES:
        return True
    with path.open("rb") as file:
        begin = file.read(10)
    if (
        path.suffix == ".safetensors"
        and begin[8:] == b'{"'
        and int.from_bytes(begin[:8], "little") < path.stat().st_size
    ):
        # Such a file begins with the length of its header, whose bytes may be anything.
        return False
    if begin.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return begin.startswith(PICKLE_MARKS)


def check_finite(folder: Path) -> str:
    """Refuse weights that are no numbers.

    Raises:
        ModelError: A015 with the tensors, A003 when the file cannot be read.
    """
    path = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            wrong = [name for name in names if not torch.isfinite(file.get_tensor(name)).all()]
    except (SafetensorError, OSError) as error:
        raise ModelError.one("A003", f"{path} cannot be read: {error}", help="fetch the adapter again") from error
    if wrong:
        raise ModelError.one(
            "A015",
            f"{len(wrong)} tensors hold NaN or infinity, such as {wrong[0]}",
            help="train again with a lower training.learning_rate; such an adapter answers nonsense",
        )
    return f"{len(names)} tensors, all of them finite"


def _base(manifest: Manifest, found: list[Base]) -> str:
    base = Base.resolve(manifest.recipe.base)
    check_base(manifest, base, commit=True)
    found.append(base)
    return ", ".join(part.id for part in manifest.base.parts.values())


def _answers(folder: Path, base: Base) -> str:
    loaded = load(folder, base=base)
    return check_answers(folder, loaded.model, loaded.encoder, loaded.precision)
