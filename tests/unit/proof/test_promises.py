"""A run that did not do what it was asked ends unproven; no promise can be kept by accident."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from qlmm.data.batching.holdout_split import Seen
from qlmm.proof.promises import judge, kept_reference
from qlmm.proof.records import PartProof, Proof, ReferenceProof, ReloadProof

GOOD = PartProof(
    part="connector",
    trained_tensors=4,
    trained_parameters=100,
    asked=True,
    moved_share=1.0,
    moved_tensors=4,
    mean_movement=1e-3,
    grad_norm_max=0.5,
    frozen_tensors=4,
    frozen_identical=True,
)
RELOAD = ReloadProof(rows=4, max_difference=0.0, tolerance=1e-4, same=True)


def _holds(
    part: PartProof = GOOD,
    *,
    reload: ReloadProof = RELOAD,
    reference: ReferenceProof | None = None,
    empty: int = 0,
    steps: int = 100,
    seen: Sequence[Seen] = (),
) -> bool:
    own = kept_reference(reference)
    promises = judge((part,), empty_masks=empty, seen=seen, own=own, reload=reload, steps=steps)
    return Proof((part,), None, None, empty, reload, reference, promises=promises).holds


def test_a_good_run_holds() -> None:
    assert _holds()


def test_a_held_out_row_that_was_trained_on_breaks_the_proof() -> None:
    assert _holds(seen=["nothing", "picture"])
    assert not _holds(seen=["nothing", "row"])


def test_pictures_that_were_trained_on_are_counted() -> None:
    promises = judge((GOOD,), empty_masks=0, seen=["nothing", "picture", "row"], own=(), reload=RELOAD, steps=9)
    (found,) = (one for one in promises if one.name == "no held-out row was trained on")
    assert found.detail == "3 compared by content hash: 1 trained on, 1 with a picture that was"
    without = judge((GOOD,), empty_masks=0, seen=(), own=(), reload=RELOAD, steps=9)
    assert found.name not in {one.name for one in without}


def test_a_part_asked_to_train_that_did_not_move_breaks_the_proof() -> None:
    assert not _holds(replace(GOOD, moved_tensors=0, moved_share=0.0))
    assert not _holds(replace(GOOD, trained_tensors=0, moved_tensors=0))


def test_only_the_biases_moving_breaks_the_proof() -> None:
    assert not _holds(replace(GOOD, moved_tensors=2))


def test_no_gradient_breaks_the_proof_even_when_weights_differ() -> None:
    assert not _holds(replace(GOOD, grad_norm_max=0.0))


def test_a_part_trained_unasked_breaks_the_proof() -> None:
    assert not _holds(replace(GOOD, asked=False))


def test_a_frozen_tensor_that_changed_breaks_the_proof() -> None:
    changed = replace(GOOD, frozen_identical=False)
    assert not _holds(changed)
    for part, detail in ((changed, "changed in: connector"), (GOOD, "4 tensors, sha256")):
        promises = judge((part,), empty_masks=0, seen=(), reload=RELOAD, own=(), steps=100)
        assert detail in [promise.detail for promise in promises]


def test_a_reload_that_differs_breaks_the_proof() -> None:
    assert not _holds(reload=replace(RELOAD, same=False, max_difference=math.inf))


def test_an_empty_mask_breaks_the_proof() -> None:
    assert not _holds(empty=1)


def test_a_tower_may_have_a_tail_behind_the_layer_that_is_used() -> None:
    assert _holds(replace(GOOD, part="vision", moved_tensors=3))
    assert not _holds(replace(GOOD, part="vision", moved_tensors=0))


def test_a_run_of_two_steps_cannot_move_loras_first_matrix() -> None:
    assert _holds(replace(GOOD, part="language", moved_tensors=2), steps=2)
    assert not _holds(replace(GOOD, part="language", moved_tensors=2), steps=50)


def test_a_reference_that_moved_or_was_not_the_start_breaks_the_promise() -> None:
    good = ReferenceProof(drift=0.0, first_loss=math.log(2), expected=math.log(2))
    assert _holds(reference=good)
    assert not _holds(reference=replace(good, drift=1e-9))
    assert not _holds(reference=replace(good, drift=math.nan))
    assert not _holds(reference=replace(good, first_loss=0.71))
    assert not _holds(reference=replace(good, first_loss=math.nan))
    assert _holds(reference=replace(good, first_loss=None))
