"""The stages of the benchmark on a GPU: random parts, the job itself, TRL beside it, a larger batch.

Usage: ``measure(Bench(folder=…, shape=OWL, …))``, which is what the command `benchmarks.gpu` does
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.clock import Clock
from benchmarks.machine import write_result
from benchmarks.peer import plain_trl
from benchmarks.record import record_of
from benchmarks.shapes import Shape
from qlmm.api import Outcome, finetune
from qlmm.artifacts.adapter.reload import prove_reload
from qlmm.cli.output.console import out
from qlmm.cli.output.screens import plan_screen, proof_screen
from qlmm.core.errors import QlmmError
from qlmm.core.events import Answered, Evaluated, Event, Finished, StepDone
from qlmm.core.units import memory
from qlmm.model.peft.adapter import attach
from qlmm.proof.records import PlanFacts, ReloadProof, to_json
from qlmm.recipe.load import LoadedRecipe
from qlmm.training.plan import Plan, make_plan
from qlmm.training.run import train
from qlmm.training.run_dir import RunDir

__all__ = ["Bench", "measure"]

SHORT_STEPS = 12
LARGER_BATCH = 4
SPARE_S = 60  # what a stage may take besides loading the base


@dataclass
class Bench:
    """One benchmark under way: where things are, what was found so far, and how long it may go on."""

    folder: Path
    shape: Shape
    tokens: int
    steps: int
    batch: int
    seconds: float
    device: str
    name: str
    results: Path | None
    begun: float = field(default_factory=time.monotonic)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def left_s(self) -> float:
        """Seconds left for optional stages."""
        return self.seconds - (time.monotonic() - self.begun)

    @property
    def compared_in(self) -> str:
        """Compute precision of the comparison: the GPU's own; on the CPU what TRL's bf16 weights need."""
        return "auto" if self.device == "cuda" else "bf16"

    def recipe(self, name: str, *, batch: int, steps: int, precision: str = "auto") -> LoadedRecipe:
        """The recipe of one run of the benchmark."""
        return self.shape.recipe(
            self.folder,
            f"data.max_length={self.tokens}",
            f"training.steps={steps}",
            f"training.batch_size={batch}",
            f"training.precision={precision}",
            f"output.dir={self.folder / name}",
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say what is going on, and note how long it took."""
        at = time.monotonic()
        print(f"[{at - self.begun:4.0f} s] {name}", flush=True)
        yield
        self.found.setdefault("seconds", {})[name] = round(time.monotonic() - at, 1)

    def write(self) -> None:
        """Write down what was found so far."""
        self.found["whole_s"] = round(time.monotonic() - self.begun, 1)
        if self.results is not None:
            print(f"written: {write_result(self.name, self.found, self.results).name}", flush=True)


@dataclass
class Diary:
    """Listens to a run: when each chapter ended, and what its steps cost."""

    clock: Clock = field(default_factory=Clock)
    facts: PlanFacts | None = None
    at: dict[str, float] = field(default_factory=lambda: {"begun": time.monotonic()})
    losses: list[float] = field(default_factory=list)
    left_bytes: int = 0
    reload_s: float = 0.0

    def planned(self, facts: PlanFacts) -> None:
        """The run is planned; nothing is loaded yet."""
        self.facts = facts
        self.at["planned"] = time.monotonic()
        out.screen(plan_screen(facts))

    def __call__(self, event: Event) -> None:
        """Note an event."""
        if isinstance(event, StepDone):
            self.clock.tick()
            self.losses.append(event.loss)
            print(f"step {event.step}/{event.total}  loss {event.loss:.3f}  {memory(event.memory_bytes)}", flush=True)
        if isinstance(event, Finished) and torch.cuda.is_available():
            self.left_bytes = torch.cuda.memory_allocated()
        self.at[_chapter(event)] = time.monotonic()

    def reload(self, *args: Any) -> ReloadProof:
        """The run's own reading back in a fresh process, timed."""
        begun = time.monotonic()
        proof = prove_reload(*args)
        self.reload_s = round(time.monotonic() - begun, 1)
        return proof

    def seconds(self) -> dict[str, float]:
        """How long each chapter of the run took."""
        names = {
            "plan": ("begun", "planned"),
            "load, quantise, hash, measure": ("planned", "measured"),
            "answer before": ("measured", "answered before"),
            "train": ("answered before", "step"),
            "save, measure, answer after": ("step", "answered after"),
            "write adapter, hash again, read back": ("answered after", "finished"),
        }
        chapters = {name: round(self.at[end] - self.at[begun], 1) for name, (begun, end) in names.items()}
        return {**chapters, "of which reading back in a fresh process": self.reload_s}


def _chapter(event: Event) -> str:
    if isinstance(event, Evaluated) and event.step == 0:
        return "measured"
    if isinstance(event, Answered):
        return f"answered {event.phase}"
    return {StepDone: "step", Finished: "finished"}.get(type(event), "other")


def run_whole(bench: Bench) -> Outcome:
    """The job itself, from recipe to proven adapter, as the command line runs it."""
    diary = Diary()
    loaded = bench.recipe("run", batch=bench.batch, steps=bench.steps)
    with bench.stage("fine-tune"), patch("qlmm.api.prove_reload", diary.reload):
        outcome = finetune(loaded, listener=diary, planned=diary.planned)
    if diary.facts is None or outcome.proof is None:
        raise RuntimeError("the run ended without a proof")
    bench.found["finetune"] = {
        "batch": bench.batch,
        **diary.clock.figures(bench.batch * bench.tokens),
        "estimated_bytes": diary.facts.memory_bytes,
        "estimated_breakdown": diary.facts.memory_breakdown,
        "left_after_bytes": diary.left_bytes,
        "tokens": asdict(diary.facts.tokens),
        "parts": [asdict(part) for part in diary.facts.parts],
        "losses": [round(loss, 4) for loss in diary.losses],
        "seconds": diary.seconds(),
    }
    bench.found["proof"] = to_json(outcome.proof)
    out.screen(proof_screen(outcome.proof))
    return outcome


def compare(bench: Bench) -> None:
    """TRL's own trainer on the same batches, then a larger batch with qlmm, both on a base that is loaded once."""
    needed = bench.found["finetune"]["seconds"]["load, quantise, hash, measure"] + SPARE_S
    if bench.left_s < needed:
        bench.found["skipped"] = f"the comparison: {bench.left_s:.0f} s left, about {needed:.0f} s needed"
        return
    ready = _short(bench, "short", bench.batch)
    with bench.stage("load the base again"):
        base = ready.base.load(ready.precision, seed=0)
    with bench.stage("TRL alone"):
        base = _time_trl(bench, ready, base)
    if bench.left_s < SPARE_S:
        bench.found["skipped"] = f"a batch of {LARGER_BATCH}: {bench.left_s:.0f} s left"
        return
    larger = _short(bench, "larger", LARGER_BATCH)
    with bench.stage(f"qlmm, batch of {LARGER_BATCH}"):
        bench.found["larger_batch"] = _time_qlmm(bench, larger, base)


def _short(bench: Bench, name: str, batch: int) -> Plan:
    return make_plan(bench.recipe(name, batch=batch, steps=SHORT_STEPS, precision=bench.compared_in).recipe)


def _time_trl(bench: Bench, ready: Plan, base: Any) -> Any:
    """Speed of TRL alone; gives the base back without its adapter."""
    clock = Clock()
    trainer = plain_trl(ready, base, steps=SHORT_STEPS, clock=clock)
    trainer.train()
    figures = clock.figures(bench.batch * bench.tokens)
    ratio = bench.found["finetune"]["tokens_per_s"] / figures["tokens_per_s"]
    bench.found["trl"] = {"batch": bench.batch, **figures, "qlmm_speed_over_trl": round(ratio, 3)}
    base = trainer.model.unload()
    del trainer
    _collect()
    return base


def _time_qlmm(bench: Bench, ready: Plan, base: Any) -> dict[str, Any]:
    """Speed of qlmm's trainer alone, without the chapters around it."""
    clock, batch = Clock(), ready.recipe.training.batch_size
    base.requires_grad_(False)
    model = attach(base, ready.placement, ready.recipe.adapter, seed=0)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            clock.tick()

    record = record_of(ready)
    with RunDir.open(Path(ready.recipe.output.dir), record) as run:
        train(ready, run, model, listen, evaluate=lambda step: None, resume=None)
    return {"batch": batch, **clock.figures(batch * bench.tokens)}


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _report(bench: Bench) -> None:
    """The figures in a few lines."""
    arms = {"qlmm": "finetune", "TRL alone": "trl", f"qlmm, batch of {LARGER_BATCH}": "larger_batch"}
    for name, key in arms.items():
        if key in bench.found:
            one = bench.found[key]
            peak = f"peak {memory(one['peak_step_bytes'])}, " if one["peak_step_bytes"] else ""
            print(f"{name}: {one['tokens_per_s']:,.0f} tokens/s, {peak}{one['step_s']:.3f} s a step")
    print(f"estimated before the run: {memory(bench.found['finetune']['estimated_bytes'])}")
    for name in ("skipped", "failed"):
        if name in bench.found:
            print(f"{name}: {bench.found[name]}")


def measure(bench: Bench) -> int:
    """Every stage in turn. The result is written before the comparison too, so that nothing there can lose it."""
    bench.found["shape"] = {**asdict(bench.shape), "tokens": bench.tokens, "steps": bench.steps}
    with bench.stage("write random weights"):
        bench.shape.write(bench.folder, bench.device)
    with bench.stage("write rows"):
        bench.shape.write_rows(bench.folder, bench.tokens)
    outcome = run_whole(bench)
    _collect()
    bench.write()
    try:
        compare(bench)
    except (QlmmError, torch.OutOfMemoryError) as error:
        bench.found["failed"] = str(error)
    bench.write()
    _report(bench)
    return 0 if outcome.status == "finished" else 1
