"""The checks of an adapter: its own files, then the base that it is put onto, then what both answer.

Nothing is loaded from a folder that is not as it was written. A check whose base cannot be had is "not checked", which
never counts as passed.

Usage: ``verdict = verify(Path("runs/owl_lora/adapter")); verdict.holds``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from qlmm.artifacts.adapter.allowed_files import check_no_pickle
from qlmm.artifacts.adapter.load import check_base, check_files, load
from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.artifacts.adapter.tensors import check_finite, check_tensors
from qlmm.core.errors import ModelError, QlmmError, Unavailable
from qlmm.model.loading.base import Base
from qlmm.proof.probe import check_answers

__all__ = ["Check", "Verdict", "check_adapter", "check_fits", "run_check", "verify"]

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
    """Check an adapter folder, as far as its base is at hand; `tell` receives a line about what is going on.

    Raises:
        ModelError: A001, A002 for what is not an adapter.
    """
    manifest = read_manifest(folder)
    base = cache(lambda: Base.resolve(manifest.recipe.base))
    checks = [
        run_check("files", lambda: check_files(folder, manifest)),
        run_check("no pickle", lambda: check_no_pickle(folder)),
        run_check("values", lambda: check_finite(folder)),
    ]
    tell("looking at the base")
    checks.append(run_check("base", lambda: check_base(manifest, base(), commit=True)))
    if all(check.status == "ok" for check in checks):
        tell("loading base and adapter")
    for name, look in (
        ("tensors", lambda: check_tensors(folder, manifest, base())),
        ("answers", lambda: _answers(folder, base())),
    ):
        statuses = {check.status for check in checks}
        if statuses == {"ok"}:
            checks.append(run_check(name, look))
        else:
            failed = "failed" in statuses
            why = "nothing is loaded from what is not as it was written" if failed else "the base is not at hand"
            checks.append(Check(name, "not checked", why))
    return Verdict(folder, tuple(checks))


def check_adapter(folder: Path) -> Manifest:
    """The manifest of a whole adapter; its base is not needed for these checks.

    Raises:
        ModelError: A001 to A003, A014, A015 for what is not a whole adapter.
    """
    manifest = read_manifest(folder)
    check_no_pickle(folder)
    check_files(folder, manifest)
    check_finite(folder)
    return manifest


def check_fits(folder: Path, manifest: Manifest, base: Base) -> None:
    """Compare the base at hand with the one that the adapter was trained on; no weight of it is read.

    Raises:
        ModelError: A004, A005, A017, A032 for another base.
    """
    check_base(manifest, base, commit=True)
    check_tensors(folder, manifest, base)
    ours, theirs = (one.tokenizer.get_vocab() for one in (base.saved_processor(folder), base.published_processor))
    if ours != theirs:
        apart = len(ours.items() ^ theirs.items())
        message = f"the base's tokenizer differs from the one the adapter was trained with, in {apart} entries"
        raise ModelError.one("A032", message, help="fetch the base and the adapter again")


def run_check(name: str, look: Callable[[], str]) -> Check:
    """What a check found, or the error it ended with; a base that cannot be had proves nothing about the adapter."""
    try:
        return Check(name, "ok", look())
    except QlmmError as error:
        status: Status = "not checked" if isinstance(error, Unavailable) else "failed"
        return Check(name, status, error.text, error.problems[0].help or "")


def _answers(folder: Path, base: Base) -> str:
    loaded = load(folder, base=base)
    return check_answers(folder, loaded.model, loaded.encoder, loaded.precision)
