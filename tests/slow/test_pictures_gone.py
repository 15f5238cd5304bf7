"""Pictures that vanish or break once a run is planned: one clear error, or their rows are left out, where allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlmm.api import finetune
from qlmm.core.errors import DataError, RunError
from qlmm.core.events import Event, RowLeftOut, Saved, StepDone, StepSkipped
from qlmm.training.logbook import read_metrics
from qlmm.training.plan import make_plan
from tests.runs import TinyRun, pair_row

pytestmark = pytest.mark.slow

STEPS, ROWS = 9, 18
FEW = (
    f"training.steps={STEPS}",
    "evaluation.rows=2",
    "evaluation.answers=0",
    "evaluation.every=99",
    "adapter.dropout=0",
)


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRun:
    return TinyRun.make(tmp_path)


def _once(happened: Callable[[Event], bool], do: Callable[[], object]) -> Callable[[Event], None]:
    """A listener that does something the first time that something happens."""
    done: list[Event] = []

    def listen(event: Event) -> None:
        if not done and happened(event):
            done.append(event)
            do()

    return listen


def _saved(event: Event) -> bool:
    return isinstance(event, Saved)


def _shown(run: TinyRun, *overrides: str, rows: int = ROWS) -> list[Path]:
    """The pictures of a run by the step that shows them first, the last ones last."""
    plan = make_plan(run.recipe(*overrides).recipe)
    shown = [image.path for row in list(plan.order())[:rows] for image in plan.train[row].images]
    return [path for path in dict.fromkeys(shown) if path is not None]


def _pairs(folder: Path) -> str:
    rows = [pair_row(folder, number) for number in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"data.sources=[{{path: {folder}/pairs.jsonl}}]"


def _record(run: TinyRun) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run.folder / "run/run.json").read_text())
    return record


@pytest.mark.parametrize(("objective", "workers"), [("sft", 0), ("sft", 2), ("dpo", 2), ("simpo", 0), ("kto", 0)])
def test_a_picture_that_goes_ends_the_run_with_its_row_until_it_is_back_or_allowed_for(
    objective: str, workers: int, tiny: TinyRun
) -> None:
    rows = () if objective == "sft" else (_pairs(tiny.folder),)
    asked = (*rows, *FEW, f"training.objective={objective}", f"training.workers={workers}")
    # Workers have read the pictures of the steps that come next.
    victim = _shown(tiny, *asked)[-1]
    aside = victim.with_suffix(".aside")
    with pytest.raises(RunError) as caught:
        finetune(tiny.recipe(*asked), listener=_once(_saved, lambda: victim.rename(aside)))
    (problem,) = caught.value.problems
    line = int(victim.stem) + 1
    assert (problem.code, problem.where and problem.where.line) == ("D036", line)
    assert victim.name in problem.message
    assert "put the picture back" in (problem.help or "")
    assert "data.max_bad_rows=1" in (problem.help or "")
    with pytest.raises(DataError, match=f"D036.*{victim.name}(?s:.*):{line}\n.*data.max_bad_rows=1"):
        finetune(tiny.recipe(*asked))
    seen: list[Event] = []
    assert finetune(tiny.recipe(*asked, "data.max_bad_rows=1"), listener=seen.append).status == "finished"
    (left_out,) = [event for event in seen if isinstance(event, RowLeftOut)]
    assert (left_out.line, victim.name in left_out.why) == (line, True)
    assert _record(tiny)["left_out"] == [
        {"step": left_out.step, "file": left_out.file, "line": line, "why": left_out.why}
    ]
    assert json.loads((tiny.folder / "run/adapter/qlmm.json").read_text())["exact"] is False
    assert victim.name in (tiny.folder / "run/report.html").read_text()
    assert left_out in read_metrics(tiny.folder / "run/metrics.jsonl")


def _losses(run: TinyRun) -> list[float]:
    return [event.loss for event in read_metrics(run.folder / "run/metrics.jsonl") if isinstance(event, StepDone)]


@pytest.mark.parametrize("objective", ["sft", "simpo"])
def test_the_loss_is_that_of_the_rows_that_are_left_in_their_places(objective: str, tiny: TinyRun) -> None:
    """Also where a pass has no row left: rows are spread over passes in two ways."""
    rows = () if objective == "sft" else (_pairs(tiny.folder),)
    asked = (*rows, *FEW, f"training.objective={objective}", "training.steps=4", "training.save_every=9")
    victim = _shown(tiny, *asked, rows=8)[-1]
    in_passes = []
    for number, passes in enumerate(("2 1", "1 2")):
        size, accumulation = passes.split()
        spread = (f"training.batch_size={size}", f"training.accumulation={accumulation}")
        run = tiny.recipe(*asked, *spread, "data.max_bad_rows=1", f"output.dir={tiny.folder}/{number}")
        finetune(run, listener=_once(lambda event: isinstance(event, StepDone), victim.unlink))
        in_passes.append(read_metrics(tiny.folder / f"{number}/metrics.jsonl"))
        pair_row(tiny.folder, int(victim.stem))
    gone = [[event for event in events if isinstance(event, RowLeftOut)] for events in in_passes]
    assert [len(events) for events in gone] == [1, 1]
    one, other = ([event.loss for event in events if isinstance(event, StepDone)] for events in in_passes)
    assert one == pytest.approx(other, rel=1e-5)
    finetune(tiny.recipe(*asked))
    whole, step = _losses(tiny), gone[0][0].step
    assert whole[: step - 1] == one[: step - 1]
    assert whole[step - 1] != one[step - 1]


def test_a_picture_that_is_put_back_leaves_no_trace(tiny: TinyRun) -> None:
    finetune(tiny.recipe(*FEW))
    whole = _losses(tiny)
    (tiny.folder / "run").rename(tiny.folder / "whole")
    victim = _shown(tiny, *FEW)[-1]
    content = victim.read_bytes()
    with pytest.raises(RunError, match="D036"):
        finetune(tiny.recipe(*FEW), listener=_once(_saved, lambda: victim.write_bytes(b"no picture")))
    victim.write_bytes(content)
    assert finetune(tiny.recipe(*FEW)).status == "finished"
    assert _losses(tiny) == whole
    assert json.loads((tiny.folder / "run/adapter/qlmm.json").read_text())["exact"] is True


def test_more_rows_than_allowed_end_the_run_and_a_step_without_rows_is_none(tiny: TinyRun) -> None:
    """Row 1 was bad from the start, and stays out when its picture is there again."""
    (tiny.folder / "0.png").write_bytes(b"no picture")
    asked = (*FEW, "training.batch_size=1", "data.max_bad_rows=2", "training.save_every=1")
    order = _shown(tiny, *asked, rows=STEPS)
    first, second = order[4], order[-1]
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Saved) and event.step == 2:
            first.write_bytes(first.read_bytes()[:60])
            second.unlink()

    with pytest.raises(RunError, match=f"D036(?s:.*){second.name}(?s:.*)data.max_bad_rows=3"):
        finetune(tiny.recipe(*asked), listener=listen)
    (left_out,) = [event for event in seen if isinstance(event, RowLeftOut)]
    assert [event.step for event in seen if isinstance(event, StepSkipped)] == [left_out.step]
    pair_row(tiny.folder, 0)
    with pytest.raises(DataError, match=r"D006(?s:.*)3 of 28 rows are bad(?s:.*)data.max_bad_rows=3"):
        finetune(tiny.recipe(*asked))
    assert finetune(tiny.recipe(*asked, "data.max_bad_rows=3")).status == "finished"
    assert [one["line"] for one in _record(tiny)["left_out"]] == [int(one.stem) + 1 for one in (first, second)]


def test_a_picture_that_is_measured_cannot_be_left_out(tiny: TinyRun) -> None:
    asked = ("evaluation.rows=4", "evaluation.every=4", "data.max_bad_rows=3", "training.steps=5")
    plan = make_plan(tiny.recipe(*asked).recipe)
    (victim,) = {image.path for image in plan.held_out[0].images if image.path is not None}
    with pytest.raises(
        RunError, match=f"D036(?s:.*){victim.name}(?s:.*):{int(victim.stem) + 1}\n.*put the picture back"
    ):
        finetune(tiny.recipe(*asked), listener=_once(_saved, victim.unlink))
    with pytest.raises(DataError, match=r"D020(?s:.*)put the picture back"):
        finetune(tiny.recipe(*asked))
    pair_row(tiny.folder, int(victim.stem))
    assert finetune(tiny.recipe(*asked)).status == "finished"
