"""For every family: a row, and the same prompt before another answer, are what each is alone; pictures stand once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from qlmm.core.errors import ModelError
from qlmm.data.batching.collators import EXCHANGED, FeedbackCollator, rows
from qlmm.data.encoding.encoder import IGNORED
from qlmm.data.sample import Feedback, Origin, Turn
from qlmm.model.token_losses import token_losses
from qlmm.training.trainers.reference import KtoTrainer
from tests.families.build import family, tiny_model
from tests.families.encoders import PICTURES, encoder, usable
from tests.families.rows import ROWS

ANSWERS = ("a", "a b a b a b a b a b", "b a b")


def judged(name: str) -> list[Feedback]:
    """Rows with answers of very different lengths, one with several pictures where the family takes them."""
    shown = (PICTURES[:1], PICTURES[1:2], PICTURES if ROWS[name].several else PICTURES[2:])
    return [
        Feedback((Turn("user", (*pictures, "what?")),), answer, number == 0, Origin("x", number + 1))
        for number, (pictures, answer) in enumerate(zip(shown, ANSWERS, strict=True))
    ]


@pytest.mark.parametrize("name", usable())
def test_a_batch_is_both_of_its_halves_encoded_alone(name: str) -> None:
    coder, given = encoder(name), judged(name)
    if coder._decoder:
        with pytest.raises(ModelError, match="D044"):
            coder.fit(given)
        return
    batch = FeedbackCollator(given, coder, kl=True)(rows(len(given)))
    assert batch["label"].tolist() == [True, False, False]
    own = coder.completions([one.sample for one in given])
    other = coder.completions([one.answered(ANSWERS[place - 1]) for place, one in enumerate(given)])
    # TRL gives the model all of a batch but these, and for the comparison their exchanged forms and nothing else.
    also = batch["KL_also"]
    assert all(torch.equal(batch[key], value) for key, value in own.items())
    compared = {**batch, **also, **{key: batch[f"KL_{key}"] for key in EXCHANGED if key in own}}
    assert all(torch.equal(compared[key], value) for key, value in other.items())
    assert "pixel_values" not in also
    assert set(also) <= {"cross_attention_mask", "moe_mm_token_type_ids"}


def test_what_differs_is_mllama_s_mask_among_others() -> None:
    batch = FeedbackCollator(judged("mllama"), encoder("mllama"), kl=True)(rows(3))
    assert "cross_attention_mask" in batch["KL_also"]


@torch.no_grad()
def test_a_comparison_of_mllama_is_scored_as_it_is_alone() -> None:
    made, coder = family("mllama"), encoder("mllama")
    given = judged("mllama")
    batch = FeedbackCollator(given, coder, kl=True)(rows(3))
    model = tiny_model(made).eval()
    alone = [
        -float(token_losses(model, inputs, inputs["input_ids"].where(mask.bool(), IGNORED)).sum())
        for place, one in enumerate(given)
        for inputs in [coder.completions([one.answered(ANSWERS[place - 1])])]
        for mask in [inputs.pop("completion_mask")]
    ]
    trainer: Any = object.__new__(KtoTrainer)
    trainer.calculate_KL, trainer._also = True, batch.pop("KL_also")
    add_fused_lm_head(model)
    assert trainer._compute_kl_logps(model, batch).tolist() == pytest.approx(alone, rel=1e-4)
    # Without its own mask a comparison does not even fit.
    trainer._also = {}
    with pytest.raises(RuntimeError):
        trainer._compute_kl_logps(model, batch)
