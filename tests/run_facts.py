"""The facts and events of one invented run, for every test that shows them."""

from __future__ import annotations

import math
from dataclasses import replace

from qlmm.core.events import Evaluated, Event, PairsEvaluated, StepDone
from qlmm.data.fingerprint import DataFingerprint, SourceCount
from qlmm.model.loading.identity import BaseIdentity, PartIdentity
from qlmm.proof.records import (
    Comparison,
    PairProof,
    PartFacts,
    PartProof,
    PictureProof,
    PlanFacts,
    Promise,
    Proof,
    ReloadProof,
    TokenFacts,
)
from qlmm.recipe.load import parse_recipe
from qlmm.training.run_dir import RunRecord

PLAN = PlanFacts(
    base="builtin:efficientnet-lite0 + abstractor + builtin:smollm2-135m",
    parts=(
        PartFacts("vision", 147, 3_371_024, 0, 0, "fp32"),
        PartFacts("connector", 58, 5_123_840, 58, 5_123_840, "fp32"),
        PartFacts("language", 692, 138_957_120, 420, 4_442_240, "nf4"),
        PartFacts("head", 1, 28_311_552, 0, 0, "bf16"),
    ),
    targets=tuple(f"{name}_proj (30)" for name in ("q", "k", "v", "o", "gate", "up", "down")),
    rows_kept=2_931,
    rows_dropped={"too long": 38, "no answer": 3},
    held_out_rows=159,
    tokens=TokenFacts(78, 92, 121, 65),
    steps=260,
    batch_rows=16,
    memory_bytes=1_395_864_371,
    memory_breakdown={"weights": 300 << 20, "gradients": 40 << 20, "optimiser": 80 << 20, "activations": 900 << 20},
    disk_bytes=210 << 20,
    precision="fp32",
    device="cpu (2 cores)",
    output_dir="runs/quickstart",
    warnings=("bf16 is emulated on this processor: computing in fp32",),
)

PROOF = Proof(
    parts=(
        PartProof("vision", 0, 0, False, 0.0, 0, 0.0, 0.0, 147, True),
        PartProof("connector", 58, 5_123_840, True, 1.0, 58, 1.24e-3, 3.41, 0, True),
        PartProof("language", 420, 4_442_240, True, 0.9994, 420, 4.1e-4, 1.27, 272, True),
        PartProof("head", 0, 0, False, 0.0, 0, 0.0, 0.0, 1, True),
    ),
    before=PictureProof(64, 8.26, 8.19, 8.4),
    after=PictureProof(64, 3.894, 4.643, 5.02),
    empty_masks=0,
    reload=ReloadProof(4, 0.0, 1e-5, True),
    promises=(
        Promise("every part asked to train moved", True, "connector 58 of 58 tensors, language 420 of 420"),
        Promise("the adapter reloads to the same model", True, "4 rows in a fresh process, largest difference 0"),
    ),
    comparisons=(Comparison("before training", "better", "held-out loss 8.260 before, 3.894 after"),),
)


PAIRS_PROOF = replace(
    PROOF,
    pairs_before=PairProof(64, 0.515625, 0.21, 60, 0.5, 0.18, None),
    pairs_after=PairProof(64, 0.84375, 12.5, 60, 0.55, -1.25, 0.0421),
)


RECIPE = """
version: 1
base: {model: some/model}
data: {sources: [{path: rows.jsonl}]}
output: {dir: run}
"""


BASE = BaseIdentity(kind="native", parts={"model": PartIdentity(id="some/model", revision=None, config_sha256="c")})


def record(seed: int = 0, id: str = "") -> RunRecord:
    """The record of the invented run before its first step."""
    recipe = parse_recipe(RECIPE, "r.yaml", [f"training.seed={seed}"]).recipe
    data = DataFingerprint("f" * 64, (SourceCount("rows.jsonl", "messages", 1.0, 30, 28, 2),))
    versions = {"qlmm": "0"}
    return RunRecord(id=id, recipe=recipe, recipe_file="r.yaml", versions=versions, base=BASE, data=data, plan=PLAN)


def step(number: int, loss: float = 5.0, total: int = 260, metrics: dict[str, float] | None = None) -> StepDone:
    """A step of the invented run."""
    rates, norms = {"language": 2e-4, "connector": 1e-3}, {"language": 1.2, "connector": 3.1}
    return StepDone(number, total, loss, rates, norms, 312.4, 1_300_000_000, 61.0, metrics or {})


def pair_step(number: int, total: int = 260) -> StepDone:
    """A step of an invented run on preferences, as TRL logs it."""
    chosen, rejected = number / 200 + 0.05 * math.sin(7 * number), -number / 60 + 0.08 * math.cos(5 * number)
    rewards = {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
    right = 1.0 - 0.5 * math.exp(-number / 15) - 0.25 * (number % 3 == 0)
    logps = {"logps/chosen": -40.0 + 10 * chosen, "logps/rejected": -42.0 + 10 * rejected}
    return step(number, math.log(1 + math.exp(-number / 20)), total, {**rewards, **logps, "rewards/accuracies": right})


def pair_metrics(steps: int = 60, *, kl: bool = True, pictures: bool = True) -> list[Event]:
    """An invented run on preferences: held-out pairs are measured at its start and every twentieth step."""

    def evaluated(number: int) -> PairsEvaluated:
        won, margin = 0.9 - 0.4 * math.exp(-number / 20), number / 10
        swapped = (0.52, margin / 10) if pictures else (None, None)
        return PairsEvaluated(number, won, margin, *swapped, kl=number / 1500 if kl and number else None)

    events: list[Event] = [evaluated(0)]
    for number in range(1, steps + 1):
        events += [pair_step(number, steps), *([evaluated(number)] if number % 20 == 0 else [])]
    return events


def metrics(steps: int = 60) -> list[Event]:
    """A falling curve with an evaluation at its start and every twentieth step."""
    events: list[Event] = [Evaluated(0, {"right": 8.26, "shuffled": 8.19, "none": 8.4})]
    for number in range(1, steps + 1):
        loss = 3.7 + 4.5 * math.exp(-number / 20)
        events.append(step(number, loss))
        if number % 20 == 0:
            events.append(Evaluated(number, {"right": loss, "shuffled": loss + number / 80, "none": loss + 1}))
    return events
