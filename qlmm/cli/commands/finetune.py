"""``qlmm finetune``: plan, train, prove, in the terminal.

Usage: ``qlmm finetune recipes/owl_lora.yaml training.steps=200 --dry-run``
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import Overrides, Recipe
from qlmm.cli.output.console import out
from qlmm.core.errors import Problem, RunError

if TYPE_CHECKING:
    from qlmm.api import Outcome
    from qlmm.cli.output.progress import Progress
    from qlmm.core.events import Event
    from qlmm.proof.records import PlanFacts
    from qlmm.recipe.load import LoadedRecipe

__all__ = ["finetune"]

EXAMPLE = "Example: qlmm finetune owl_lora training.steps=200 --dry-run"


def finetune(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop; nothing is written.")] = False,
) -> None:
    """Fine-tune by a recipe, or continue its run."""
    from qlmm.recipe.library import resolve
    from qlmm.recipe.load import load_recipe

    loaded = load_recipe(resolve(recipe), overrides or [])
    if dry_run:
        _show_plan(loaded)
        return
    outcome = _run(loaded)
    if outcome.status == "stopped":
        out.talk(f"stopped and saved; continue with: qlmm finetune {recipe} {' '.join(overrides or [])}".rstrip())
        raise typer.Exit(128 + (outcome.signal or signal.SIGTERM))
    if outcome.status == "already":
        out.talk(f"{outcome.run_dir} is complete already; nothing was done")
    _show(outcome, recipe)


def _show_plan(loaded: LoadedRecipe) -> None:
    from qlmm import api
    from qlmm.cli.output.screens import plan_screen
    from qlmm.cli.packaged import prepare_packaged

    with loaded.placing():
        prepare_packaged(loaded.recipe)
        out.screen(plan_screen(api.plan(loaded.recipe).facts))


def _run(loaded: LoadedRecipe) -> Outcome:
    from qlmm import api
    from qlmm.cli.packaged import prepare_packaged

    progress = _Progress(loaded.recipe.training.log_every)
    try:
        with loaded.placing():
            prepare_packaged(loaded.recipe)
            return api.finetune(loaded, planned=progress.begin, listener=progress)
    finally:
        progress.end()


def _show(outcome: Outcome, recipe: str) -> None:
    """Print what a run that came to its end did.

    Raises:
        RunError: P001 for each promise that was broken.
    """
    from qlmm.cli.output.screens import answers_screen, done_screen, proof_screen

    if outcome.answers:
        out.screen(answers_screen(outcome.answers))
    if outcome.proof is not None:
        out.screen(proof_screen(outcome.proof, ascii_only=out.ascii_only))
    if outcome.status == "unproven":
        broken = [promise for promise in outcome.proof.promises if not promise.kept] if outcome.proof else []
        kept = f"the adapter is kept as {outcome.adapter}; do not rely on it"
        raise RunError([Problem("P001", f"promise broken: {one.name} ({one.detail})", help=kept) for one in broken])
    following = [_question(outcome), f"qlmm chat {outcome.adapter}", f"qlmm data show {recipe} --row 1"]
    # Commands are pasted, so they must not be wrapped.
    out.screen(done_screen(outcome.run_dir, following), soft_wrap=True)


def _question(outcome: Outcome) -> str:
    """A ``qlmm ask`` that can be pasted as it stands, about a held-out picture of the run."""
    if not outcome.answers:
        return f'qlmm ask {outcome.adapter} "…"'
    picture = outcome.run_dir / "held-out" / "1.png"
    return f'qlmm ask {outcome.adapter} --image {picture} "{outcome.answers[0].question or "What is this?"}"'


class _Progress:
    """The plan screen, then one progress bar or plain lines, from the first event to the last."""

    def __init__(self, log_every: int) -> None:
        self._log_every = log_every
        self._bar: Progress | None = None

    def begin(self, facts: PlanFacts) -> None:
        """Show the plan and start counting steps."""
        from qlmm.cli.output.progress import progress
        from qlmm.cli.output.screens import plan_screen

        out.screen(plan_screen(facts))
        self._bar = progress(facts.steps, log_every=self._log_every)

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        if self._bar is not None:
            self._bar(event)

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
