"""``qlmm finetune``: plan, train, prove, in the terminal."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import Overrides, Recipe, loaded_recipe, prepare_packaged
from qlmm.cli.output.console import out
from qlmm.core.errors import Problem, RunError

if TYPE_CHECKING:
    from qlmm.api import Outcome
    from qlmm.recipe.load import LoadedRecipe

__all__ = ["finetune"]

EXAMPLE = "Example: qlmm finetune owl_lora training.steps=200 --dry-run"


def finetune(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop; nothing is written.")] = False,
) -> None:
    """Fine-tune by a recipe, or continue its run."""
    loaded = loaded_recipe(recipe, overrides)
    outcome = _run(loaded, dry_run=dry_run)
    if outcome is None:
        return
    if outcome.status == "stopped":
        out.note(f"stopped and saved; continue with: qlmm finetune {recipe} {' '.join(overrides or [])}".rstrip())
        raise typer.Exit(128 + (outcome.signal or signal.SIGTERM))
    if outcome.status == "already":
        out.note(f"{outcome.run_dir} is complete already; nothing was done")
    _show(outcome, recipe)


def _run(loaded: LoadedRecipe, *, dry_run: bool) -> Outcome | None:
    """Show the plan, then train by it unless only the plan is wanted."""
    from qlmm import api
    from qlmm.cli.output.progress import Progress
    from qlmm.cli.output.screens import plan_screen

    with loaded.placing(), Progress(loaded.recipe.training.log_every) as progress:
        prepare_packaged(loaded.recipe)
        if dry_run:
            out.screen(plan_screen(api.plan(loaded.recipe).facts))
            return None
        return api.finetune(loaded, planned=lambda facts: out.screen(plan_screen(facts)), listener=progress)


def _show(outcome: Outcome, recipe: str) -> None:
    """Print what a run that came to its end did; P001 for each promise that was broken."""
    from qlmm.cli.output.screens import answers_screen, done_screen, proof_screen

    if outcome.answers:
        out.screen(answers_screen(outcome.answers))
    if outcome.proof is not None:
        out.screen(proof_screen(outcome.proof))
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
