"""What is known of a run before it starts, and what it proved when it ended: plain values, no models.

The plan screen, ``run.json``, the report and the model card all read these values, so that they cannot disagree.

Usage: ``json.dumps(to_json(plan))``
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

__all__ = [
    "IN_JSON", "Against", "Answer", "Chosen", "Comparison", "HeldOutProof", "PairProof", "PartFacts", "PartName",
    "PartProof", "PictureProof", "PlanFacts", "Promise", "Proof", "ReferenceProof", "ReloadProof", "Result",
    "TokenFacts", "Verdicts", "to_json",
]  # fmt: skip

PartName = Literal["vision", "connector", "language", "head", "other"]
Against = Literal["before training", "without the picture", "the commonest answer"]
Result = Literal["better", "same", "worse"]

# A diverged run has losses that are not numbers; JSON has no word for them, so they are written as strings.
IN_JSON = ConfigDict(ser_json_inf_nan="strings", ser_json_bytes="base64", val_json_bytes="base64", extra="forbid")


class _Fact:
    """Facts read and write their JSON in one way."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = IN_JSON


@dataclass(frozen=True, slots=True)
class PartFacts(_Fact):
    """One part of the model, counted: ``storage`` is how its frozen weights lie in memory (nf4, int8, bf16, fp32)."""

    part: PartName
    tensors: int
    parameters: int
    trainable_tensors: int
    trainable_parameters: int
    storage: str


@dataclass(frozen=True, slots=True)
class TokenFacts(_Fact):
    """Tokens per kept row, visual tokens included; ``visual_median`` is the visual share of the median row."""

    median: int
    p95: int
    max: int
    visual_median: int


@dataclass(frozen=True, slots=True)
class Chosen(_Fact):
    """What was chosen so that a run fits into `training.memory`; ``every`` is which layers are checkpointed, 0 none."""

    batch_size: int
    accumulation: int
    every: int
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]


@dataclass(frozen=True, slots=True)
class PlanFacts(_Fact):
    """Everything a user should know before the first step.

    Attributes:
        base: the base and, where assembled, its three parts, as the recipe names them.
        parts: counts per part, in the order data flow through the model.
        targets: LoRA target patterns with how many modules each matched, such as ``q_proj (30)``.
        batch_rows: rows per optimiser step, accumulation included.
        memory_bytes: forecast of the peak, the sum of ``memory_breakdown``.
        disk_bytes: estimated size of the finished run directory.
        precision: of computing: bf16, fp16 or fp32.
        pictures: the pixel budget as the processor spells it, such as ``size.longest_edge 1,003,520 pixels``.
        notes: how the run is computed, where that was chosen for it.
        chosen: what was chosen for `training.memory`, which a continued run keeps; None where nothing was asked.
    """

    base: str
    parts: tuple[PartFacts, ...]
    targets: tuple[str, ...]
    rows_kept: int
    rows_dropped: dict[str, int]
    held_out_rows: int
    tokens: TokenFacts
    steps: int
    batch_rows: int
    memory_bytes: int
    memory_breakdown: dict[str, int]
    disk_bytes: int
    precision: str
    device: str
    output_dir: str
    pictures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    chosen: Chosen | None = None

    @property
    def trainable_parameters(self) -> int:
        """Parameters that are trained, over all parts."""
        return sum(part.trainable_parameters for part in self.parts)

    @property
    def parameters(self) -> int:
        """All parameters, over all parts."""
        return sum(part.parameters for part in self.parts)


@dataclass(frozen=True, slots=True)
class PartProof(_Fact):
    """What training did to one part.

    Attributes:
        moved_share: share of its trained weights, 0 to 1, whose value changed.
        moved_tensors: trained tensors of which at least one weight changed.
        mean_movement: mean absolute change over all trained weights of the part.
        grad_norm_max: the largest gradient norm seen over the run.
        frozen_identical: every frozen tensor has the very bits it started with.
    """

    part: PartName
    trained_tensors: int
    trained_parameters: int
    asked: bool
    moved_share: float
    moved_tensors: int
    mean_movement: float
    grad_norm_max: float
    frozen_tensors: int
    frozen_identical: bool


@dataclass(frozen=True, slots=True)
class ReferenceProof(_Fact):
    """The reference of a preference objective.

    Attributes:
        drift: largest absolute change of one of its weights over the run.
        first_loss: the loss before the first step, where policy and reference are one; None for a continued run.
        expected: what `first_loss` must be (ln 2 for the sigmoid loss); None for losses that have no such value.
    """

    drift: float
    first_loss: float | None
    expected: float | None


@dataclass(frozen=True, slots=True)
class PictureProof(_Fact):
    """Held-out loss, in nats per supervised token, with the right picture, with another row's, and with none."""

    rows: int
    right: float
    shuffled: float
    none: float

    @property
    def gap(self) -> float:
        """How much the right picture helps over a wrong one, in nats per token; 0 means that the picture is ignored."""
        return self.shuffled - self.right


@dataclass(frozen=True, slots=True)
class PairProof(_Fact):
    """Held-out pairs, measured on the log-probability, in nats, that the model gives to either answer.

    Attributes:
        won: share of the pairs, 0 to 1, whose chosen answer has the higher log-probability per token.
        margin: mean of log p(chosen) - log p(rejected), each summed over its answer.
        swapped_rows: pairs that were measured with another row's pictures too.
        won_swapped: as `won`, with those pictures; None when no row has pictures to swap.
        margin_swapped: as `margin`, with those pictures.
        kl: exact KL(policy || reference) per answer token; None where there is no reference beside the policy.
    """

    rows: int
    won: float
    margin: float
    swapped_rows: int
    won_swapped: float | None
    margin_swapped: float | None
    kl: float | None


@dataclass(frozen=True, slots=True)
class HeldOutProof(_Fact):
    """All that was measured on held-out rows at one time; None where there are no rows for it."""

    pictures: PictureProof | None
    pairs: PairProof | None


@dataclass(frozen=True, slots=True)
class ReloadProof(_Fact):
    """The adapter read back in a fresh process: the largest difference of its logits from the trained model's."""

    rows: int
    max_difference: float
    tolerance: float
    same: bool


@dataclass(frozen=True, slots=True)
class Promise(_Fact):
    """One promise in words, whether it was kept, and the numbers behind the verdict."""

    name: str
    kept: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Comparison(_Fact):
    """The trained model on held-out rows beside something that costs nothing, and the numbers behind the result."""

    against: Against
    result: Result
    detail: str


@dataclass(frozen=True, slots=True)
class Verdicts(_Fact):
    """What to make of a run.

    Attributes:
        sound: every promise was kept: the run did what its recipe asks.
        useful: on held-out rows the model is better than all it was compared with; None where nothing was compared.
        worse: on held-out rows the model is worse than before training.
    """

    sound: bool
    sound_because: str
    useful: bool | None
    useful_because: str
    worse: bool


@dataclass(frozen=True, slots=True)
class Proof(_Fact):
    """What a run can prove about itself; absent parts were not measured.

    Attributes:
        promises: whether the run did what its recipe asks.
        comparisons: whether that was of use, on held-out rows.
        skipped: steps that were not taken, since their loss or a gradient was not finite.
    """

    parts: tuple[PartProof, ...]
    before: PictureProof | None
    after: PictureProof | None
    empty_masks: int
    reload: ReloadProof | None
    reference: ReferenceProof | None = None
    pairs_before: PairProof | None = None
    pairs_after: PairProof | None = None
    promises: tuple[Promise, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    skipped: tuple[int, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every promise was kept. No promise at all proves nothing."""
        return bool(self.promises) and all(promise.kept for promise in self.promises)


@dataclass(frozen=True, slots=True)
class Answer(_Fact):
    """One held-out question: the picture (a PNG thumbnail), the expected answer, and the model's before and after.

    With `picture_trained`, rows about the same picture were trained on.
    """

    picture: bytes
    question: str
    expected: str
    before: str
    after: str
    picture_trained: bool = False


def to_json(fact: object) -> dict[str, Any]:
    """A fact as plain JSON values: pictures as base64, numbers that are not finite as strings."""
    raw: dict[str, Any] = json.loads(TypeAdapter(type(fact)).dump_json(fact))
    return raw
