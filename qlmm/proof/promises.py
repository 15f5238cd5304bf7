"""What a run promises, judged from what was measured.

Usage: ``promises = judge(parts, empty_masks=0, seen=plan.seen, own=kept_reference(found), reload=…, steps=260)``
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qlmm.data.batching.holdout_split import Seen
from qlmm.proof.records import PartProof, Promise, ReferenceProof, ReloadProof

__all__ = ["judge", "kept_reference", "trained"]

# LoRA's first matrix has no gradient until its second one has moved, which a warm-up from zero delays further;
# with fewer steps than this a tensor that stands still proves nothing.
_STEPS_TO_MOVE_ALL = 5
# Policy and reference run in two passes; under bf16 these may round differently.
_FIRST_LOSS_TOLERANCE = 1e-3


def judge(
    parts: tuple[PartProof, ...],
    *,
    empty_masks: int,
    seen: Sequence[Seen],
    own: Iterable[Promise],
    reload: ReloadProof,
    steps: int,
) -> tuple[Promise, ...]:
    """Every promise of a run, decided; `seen` is what of each held-out row was trained on, `own` the objective's."""
    changed = [part.part for part in parts if not part.frozen_identical]
    same = f"{sum(part.frozen_tensors for part in parts)} tensors, sha256"
    frozen = f"changed in: {', '.join(changed)}" if changed else same
    masks = f"{empty_masks} rows with an empty mask"
    again = f"largest difference {reload.max_difference:.2g} over {reload.rows} rows, tolerance {reload.tolerance:.2g}"
    return (
        *trained(parts, steps),
        Promise("everything frozen is bit-identical to the start", not changed, frozen),
        Promise("every trained row has something to learn", empty_masks == 0, masks),
        *_unseen(seen),
        *own,
        Promise("the adapter read back in a fresh process gives the same logits", reload.same, again),
    )


def _unseen(seen: Sequence[Seen]) -> Iterator[Promise]:
    """Where rows were held out: that none of them is among those of this run; of an earlier one nothing is known."""
    if seen:
        rows, pictures = seen.count("row"), seen.count("picture")
        found = f"{len(seen)} compared by content hash: {rows} trained on, {pictures} with a picture that was"
        yield Promise("no held-out row was trained on", not rows, found)


def trained(parts: tuple[PartProof, ...], steps: int) -> Iterator[Promise]:
    """Whether each part was trained that the recipe asks to train, and no other."""
    for part in parts:
        if part.asked:
            movement = (
                f"{part.moved_tensors} of {part.trained_tensors} tensors and {part.moved_share:.1%} of the weights "
                f"moved, largest gradient {part.grad_norm_max:.3g}"
            )
            yield Promise(f"{part.part} was trained", _moved(part, steps), movement)
        elif part.trained_tensors:
            yield Promise(f"{part.part} was left alone", False, f"{part.trained_tensors} tensors were trained unasked")


def _moved(part: PartProof, steps: int) -> bool:
    # A tower is trained through one of its layers; what lies behind that layer (a pooling head, the last blocks under
    # LLaVA's second-last one) has no gradient and stands still. Language model and connector have no such tail.
    some_is_enough = part.part == "vision" or steps < _STEPS_TO_MOVE_ALL
    enough = part.moved_tensors > 0 if some_is_enough else part.moved_tensors == part.trained_tensors
    return part.trained_tensors > 0 and enough and part.grad_norm_max > 0


def kept_reference(reference: ReferenceProof | None) -> Iterator[Promise]:
    """What an objective with a reference promises: training began there, and it stayed what it was."""
    if reference is None:
        return
    yield Promise("the reference stayed what it was", reference.drift == 0, f"largest change {reference.drift:.2g}")
    if reference.first_loss is not None and reference.expected is not None:
        off = abs(reference.first_loss - reference.expected)
        detail = f"first loss {reference.first_loss:.6f}, expected {reference.expected:.6f}"
        yield Promise("training began at the reference", off <= _FIRST_LOSS_TOLERANCE, detail)
