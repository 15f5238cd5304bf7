"""The facts and events of one invented run, for every test that shows them."""

from __future__ import annotations

import math

from qlmm.core.events import Evaluated, Event, StepDone
from qlmm.training.facts import (
    PartFacts,
    PartProof,
    PictureProof,
    PlanFacts,
    Promise,
    Proof,
    ReloadProof,
    TokenFacts,
)

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
)


def step(number: int, loss: float = 5.0, total: int = 260) -> StepDone:
    """A step of the invented run."""
    rates = {"language": 2e-4, "connector": 1e-3}
    return StepDone(number, total, loss, rates, {"language": 1.2, "connector": 3.1}, 312.4, 1_300_000_000, 61.0)


def metrics(steps: int = 60) -> list[Event]:
    """A falling curve with an evaluation at its start and every twentieth step."""
    events: list[Event] = [Evaluated(0, {"right": 8.26, "shuffled": 8.19, "none": 8.4})]
    for number in range(1, steps + 1):
        loss = 3.7 + 4.5 * math.exp(-number / 20)
        events.append(step(number, loss))
        if number % 20 == 0:
            events.append(Evaluated(number, {"right": loss, "shuffled": loss + number / 80, "none": loss + 1}))
    return events
