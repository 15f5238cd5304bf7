"""What a run that goes on has to share with the run that was started: recipe, rows and base.

Versions and settings of the machine may differ; the difference is written down.

Usage: ``check_same_data(run, ready); note_changes(run, ready, versions(), listener)``
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qlmm.core import env
from qlmm.core.errors import RunError
from qlmm.core.events import Listener, Warned
from qlmm.proof.fingerprint import Start
from qlmm.recipe import resume_rules
from qlmm.recipe.schema import Recipe
from qlmm.training.objective import objective
from qlmm.training.plan import Plan
from qlmm.training.run_dir import RunDir

__all__ = ["check_same_base", "check_same_data", "note_changes", "refuse_changed"]


def refuse_changed(old: Recipe, new: Recipe, path: Path) -> None:
    """Refuse a recipe that would lead the run in a directory somewhere else: R040 for each key."""
    separable = objective(new.training.objective).separable(new.training)
    resume_rules.refuse(resume_rules.compare(old, new, separable=separable), str(path))


def check_same_data(run: RunDir, ready: Plan) -> None:
    """Refuse other rows than those the run was started with: C002, with both fingerprints."""
    recorded, present = run.record.data.sha256, ready.data.sha256
    if recorded != present:
        changed = f"the rows changed since {run.path} was started"
        help = "put the data back as they were, or start a new run with another output.dir"
        raise RunError.one("C002", f"{changed}: fingerprint {recorded[:12]} then, {present[:12]} now", help=help)


def check_same_base(run: RunDir, start: Start) -> None:
    """Refuse another base than the one the run was started with, down to the last bit: C003."""
    if run.record.frozen_sha256 is None:
        run.write(frozen_sha256=start.base_sha256)
    if run.record.frozen_sha256 != start.base_sha256:
        help = "pin the base's revision (id@commit), or start a new run with another output.dir"
        raise RunError.one("C003", f"the base's weights are not those {run.path} was started with", help=help)


def note_changes(run: RunDir, ready: Plan, versions: Mapping[str, str], listener: Listener) -> None:
    """Name what a run goes on with otherwise than it was started: its end is then not that of a run in one piece."""
    started = run.record
    then = started.versions | started.environment | {"precision": started.plan.precision, "device": started.plan.device}
    now = {**versions, **env.numeric(), "precision": ready.facts.precision, "device": ready.facts.device}
    changed = [
        f"{name} {then.get(name, 'unset')} → {now.get(name, 'unset')}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
    if changed:
        help = "the result is not exactly that of an uninterrupted run"
        listener(Warned(f"the run was started with other versions or settings: {', '.join(changed)}; {help}"))
        run.write(changes=tuple(dict.fromkeys((*started.changes, *changed))))
