"""Is an adapter what it says it is? Every claim that can be checked is checked, and what cannot be is said so.

Files and tensors are looked at first: nothing is loaded from a folder that is not as written. What needs the base is
"not checked" where the base cannot be had, which is never counted as passed.

Usage: ``verdict = verify(Path("runs/owl_lora/adapter")); verdict.holds``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from qlmm.artifacts.adapter.allowed_files import check_no_pickle
from qlmm.artifacts.adapter.load import check_base, check_files, load
from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.artifacts.adapter.tensors import check_tensors
from qlmm.core.errors import ModelError, QlmmError, Unavailable
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.model.loading.base import Base
from qlmm.proof.probe import check_answers

__all__ = ["Check", "Verdict", "check_finite", "run_check", "verify"]

Status = Literal["ok", "failed", "not checked"]


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


def verify(folder: Path, *, tell: Callable[[str], None] = lambda line: None) -> Verdict:
    """Check an adapter folder.

    Args:
        folder: the adapter's.
        tell: receives a line about what is going on.

    Raises:
        ModelError: A001, A002 for what is not an adapter.
    """
    manifest = read_manifest(folder)
    folder_checks = (
        run_check("files", lambda: _files(folder, manifest)),
        run_check("no pickle", lambda: check_no_pickle(folder)),
        run_check("values", lambda: check_finite(folder)),
    )
    tell("looking at the base")
    found: list[Base] = []
    base = run_check("base", lambda: _base(manifest, found))
    if base.status == "not checked":
        why = "the base is not at hand"
    elif any(one.status != "ok" for one in (*folder_checks, base)):
        why = "nothing is loaded from what is not as it was written"
    else:
        tell("loading base and adapter")
        tensors = run_check("tensors", lambda: check_tensors(folder, manifest, found[0]))
        fit = tensors.status == "ok"
        answers = (
            run_check("answers", lambda: _answers(folder, found[0]))
            if fit
            else _unchecked("answers", "the tensors do not fit")
        )
        return Verdict(folder, (*folder_checks, base, tensors, answers))
    return Verdict(folder, (*folder_checks, base, *(_unchecked(name, why) for name in ("tensors", "answers"))))


def _unchecked(name: str, why: str) -> Check:
    return Check(name, "not checked", why)


def run_check(name: str, look: Callable[[], str]) -> Check:
    """Make a check: what it found where it passes, the error where it fails, or that its base cannot be had."""
    try:
        return Check(name, "ok", look())
    except QlmmError as error:
        # A base that cannot be had says nothing about the adapter.
        status: Status = "not checked" if isinstance(error, Unavailable) else "failed"
        return Check(name, status, error.text, error.problems[0].help or "")


def _files(folder: Path, manifest: Manifest) -> str:
    check_files(folder, manifest)
    return f"{len(manifest.files)} files are as they were written"


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
