"""``qlmm finetune``: plan, train, prove, in the terminal."""

from __future__ import annotations

import signal
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import AsJson, Overrides, Recipe, loaded_recipe, prepare_packaged
from qlmm.cli.output.console import out
from qlmm.core.command_line import ours
from qlmm.core.errors import Problem, RunError
from qlmm.core.filenames import PICTURES

if TYPE_CHECKING:
    from qlmm.api import Outcome
    from qlmm.recipe.load import LoadedRecipe

__all__ = ["finetune"]

EXAMPLE = "Example: qlmm finetune owl_lora training.steps=200 --dry-run"


def finetune(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop; nothing is written.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune by a recipe, or continue its run."""
    loaded = loaded_recipe(recipe, overrides)
    outcome = _run(loaded, dry_run=dry_run, as_json=as_json)
    if outcome is None:
        return
    if outcome.status == "stopped":
        out.note(f"stopped and saved; continue with: {ours('finetune', recipe, *(overrides or []))}")
    if outcome.status == "already":
        out.note(f"{outcome.run_dir} is complete already; nothing was done")
    code = 128 + (outcome.signal or signal.SIGTERM) if outcome.status == "stopped" else 0
    broken = _broken(outcome)
    if as_json:
        out.json(_facts(outcome), broken, exit_code=code)
    elif not code:
        _show(outcome)
    if broken is not None:
        raise broken
    if code:
        raise typer.Exit(code)
    _warn_and_go_on(outcome, recipe, as_json=as_json)


def _run(loaded: LoadedRecipe, *, dry_run: bool, as_json: bool) -> Outcome | None:
    """Show the plan, then train by it unless only the plan is wanted."""
    from qlmm import api
    from qlmm.cli.output.progress import Progress
    from qlmm.cli.output.screens import plan_screen
    from qlmm.proof.records import PlanFacts, to_json

    def planned(facts: PlanFacts) -> None:
        if not as_json:
            out.screen(plan_screen(facts))
        elif dry_run:
            out.json({"status": "planned", "plan": to_json(facts)})

    with loaded.placing(), Progress(loaded.recipe.training.log_every) as progress:
        prepare_packaged(loaded.recipe)
        if dry_run:
            planned(api.plan(loaded.recipe).facts)
            return None
        return api.finetune(loaded, planned=planned, listener=progress)


def _broken(outcome: Outcome) -> RunError | None:
    """P001 for each promise that was broken."""
    if outcome.status != "unproven" or outcome.proof is None:
        return None
    kept = f"the adapter is kept as {outcome.adapter}; do not rely on it"
    broken = [promise for promise in outcome.proof.promises if not promise.kept]
    return RunError([Problem("P001", f"promise broken: {one.name} ({one.detail})", help=kept) for one in broken])


def _facts(outcome: Outcome) -> dict[str, object]:
    """What a script may want of a run; the whole record is run.json."""
    from qlmm.proof.verdicts import verdicts

    return {
        "status": outcome.status,
        "run_dir": str(outcome.run_dir),
        "adapter": str(outcome.adapter) if outcome.adapter is not None else None,
        "verdicts": asdict(verdicts(outcome.proof)) if outcome.proof is not None else None,
    }


def _show(outcome: Outcome) -> None:
    """Print what a run that came to its end did."""
    from qlmm.cli.output.screens import answers_screen, proof_screen

    if outcome.answers:
        out.screen(answers_screen(outcome.answers))
    if outcome.proof is not None:
        out.screen(proof_screen(outcome.proof))


def _warn_and_go_on(outcome: Outcome, recipe: str, *, as_json: bool) -> None:
    """Warn where training made the model worse; print where things are and what can be done next."""
    from qlmm.cli.output.screens import done_screen
    from qlmm.proof.verdicts import verdicts

    if outcome.proof is not None and (found := verdicts(outcome.proof)).worse:
        out.warn(f"training made the model worse on held-out rows: {found.useful_because}")
    if not as_json:
        following = [_question(outcome), ours("chat", outcome.adapter), ours("data show", recipe, row=1)]
        # Commands are pasted, so they must not be wrapped.
        out.screen(done_screen(outcome.run_dir, following), soft_wrap=True)


def _question(outcome: Outcome) -> str:
    """A ``qlmm ask`` that can be pasted as it stands, about a held-out picture of the run."""
    if not outcome.answers:
        return ours("ask", outcome.adapter, "…")
    asked = " ".join(outcome.answers[0].question.split())
    return ours("ask", outcome.adapter, asked or "What is this?", image=outcome.run_dir / PICTURES / "1.png")
