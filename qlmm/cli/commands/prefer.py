"""``qlmm prefer``: preference pairs from a model's own answers, in the terminal."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import Adapter, AsJson, ImageRoot, MaxNewTokens, Seed, adapter_folder
from qlmm.cli.output.console import out
from qlmm.core.filenames import RUN_RECORD
from qlmm.core.units import clock, share
from qlmm.recipe.zoo import PREFIX as ZOO

if TYPE_CHECKING:
    from qlmm.preference_data.prefer import PromptDone
    from qlmm.preference_data.summary import Summary

__all__ = ["prefer"]

EXAMPLE = "Example: qlmm prefer runs/owl_lora/adapter --prompts questions.jsonl --out pairs.jsonl"
GO_ON = "the same command goes on from there"
# Below this, most of what a judge answers is neither yes nor no.
LITTLE_HEARD = 0.5


def prefer(  # noqa: PLR0913, PLR0917  every parameter is an option of the command
    adapter: Adapter,
    prompts: Annotated[str, typer.Option(metavar="FILE", help="Questions, in any format that can be trained on.")],
    pairs: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file of pairs to write.")],
    judge: Annotated[
        str | None,
        typer.Option(metavar="ADAPTER|ID", help="What judges: an adapter or a model; unset: ADAPTER."),
    ] = None,
    image_root: ImageRoot = None,
    answers: Annotated[int, typer.Option(help="Answers drawn per question.")] = 10,
    temperature: Annotated[float, typer.Option(help="Temperature of the draws.")] = 0.7,
    per_prompt: Annotated[int, typer.Option(help="Most pairs taken from one question.")] = 2,
    max_new_tokens: MaxNewTokens = 256,
    limit: Annotated[int | None, typer.Option(help="Take only the first so many questions.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Make preference pairs from own answers."""
    from qlmm.artifacts.adapter.manifest import read_manifest
    from qlmm.preference_data.pairing import Settings

    settings = Settings(answers, temperature, per_prompt, max_new_tokens, seed, limit)
    # Refused in a moment, before the libraries that load a model are imported.
    settings.check()
    folder = adapter_folder(adapter)
    read_manifest(folder)
    if judge is not None and (judge.startswith(ZOO) or Path(judge, RUN_RECORD).is_file()):
        judge = str(adapter_folder(judge))
    from qlmm.preference_data import prefer as making

    try:
        outcome = making.prefer(
            folder, prompts, pairs, judge=judge, image_root=image_root, settings=settings, listener=_note_prompt
        )
    except KeyboardInterrupt:
        out.note(f"stopped at once; {GO_ON}")
        raise
    if outcome.summary is None:
        out.note(f"stopped after {outcome.done} of {outcome.total} prompts; {GO_ON}")
        raise typer.Exit(128 + (outcome.signal or signal.SIGTERM))
    _show(outcome.summary, pairs, making.records_of(pairs), as_json=as_json)


def _note_prompt(done: PromptDone) -> None:
    verdicts = [one.refuted for answer in done.record.answers for one in answer.statements]
    out.note(
        f"prompt {done.number:>{len(str(done.total))}}/{done.total}  {len(verdicts)} statements, "
        f"{sum(verdicts)} refuted, {len(done.record.pairs)} pairs  {clock(done.seconds_left)} left"
    )


def _show(summary: Summary, pairs: Path, records: Path, *, as_json: bool) -> None:
    from qlmm.cli.output.screens import facts_screen

    if summary.heard < LITTLE_HEARD:
        out.warn("the judge mostly answers neither yes nor no: do not rely on its verdicts, name a better --judge")
    if as_json:
        out.json({"out": str(pairs), "records": str(records), **asdict(summary)})
        return
    own = f" ({summary.own_sentences:,} answers judged by their own sentences)" if summary.own_sentences else ""
    sections = {
        "found": [
            ("prompts", f"{summary.prompts:,}, {summary.without_pair:,} without a pair"),
            ("answers", f"{summary.answers:,}"),
            ("statements", f"{summary.statements:,}, {share(summary.refuted)} refuted{own}"),
            ("verdicts", f"yes or no is {share(summary.heard)} of what the judge would say"),
        ],
        "pairs": [
            ("pairs", f"{summary.found:,} found, {summary.pairs:,} after the length filter (r = {summary.ratio:.2f})"),
            ("words", f"{summary.chosen_words:.1f} chosen, {summary.rejected_words:.1f} rejected, on average"),
        ],
        "files": [("pairs", str(pairs)), ("records", str(records))],
    }
    out.screen(facts_screen(sections))
