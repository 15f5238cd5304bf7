"""Every preference loss a recipe can name has the value its formula gives on one small vector.

Policy log-probabilities -10 and -14, reference -11 and -13, lengths 5 and 7, beta 0.1; the formulas are those of the
losses' papers, worked out by hand.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer as OfTrl
from trl.trainer.utils import FusedCausalLMOutput

from qlmm.model.numerics.precision import Precision
from qlmm.recipe.schema import OutputSection, TrainingSection
from qlmm.training.trl_settings import LOSSES, trainer_config

CHOSEN, REJECTED = 5, 7
POLICY, REFERENCE = (-10.0, -14.0), (-11.0, -13.0)
VALUES = {
    "sigmoid": 0.598139,
    "sigmoid_norm": 0.676151,
    "hinge": 0.800000,
    "ipo": 21.688980,
    "robust": 0.573139,
    "nca_pair": 1.338793,
    "bco_pair": 1.288793,
    "sppo_hard": 32.000000,
    "apo_zero": 0.950042,
    "apo_down": 0.975145,
    "exo_pair": 2.422015,
    "sft": 2.000000,
}
SMOOTHED = {"robust": 0.1, "exo_pair": 1e-3}
MPO = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}


def spread(total: tuple[float, float]) -> torch.Tensor:
    """Log-probabilities per token: each answer's total, spread evenly over its tokens."""
    rows = torch.zeros(2, REJECTED)
    rows[0, :CHOSEN] = total[0] / CHOSEN
    rows[1, :REJECTED] = total[1] / REJECTED
    return rows


def said(total: tuple[float, float]) -> Any:
    """What a fused head returns."""
    log_probs, mask = spread(total), spread((1.0, 1.0)).ne(0)
    zeros = torch.zeros_like(log_probs)
    return FusedCausalLMOutput(
        loss=None, log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=mask, label_mask=mask
    )


def value(losses: dict[str, float], **extra: Any) -> float:
    """TRL's loss for a recipe's losses, on the vector."""
    training = TrainingSection(objective="dpo", losses=losses, extra=extra)
    args = trainer_config(training, OutputSection(dir="x"), Precision("cpu", "fp32"), steps=1)
    assert isinstance(args, DPOConfig)
    trainer: Any = object.__new__(OfTrl)
    trainer.args, trainer.loss_types, trainer.loss_weights = args, args.loss_type, args.loss_weights
    for name in ("beta", "ld_alpha", "f_divergence_type", "label_smoothing", "use_weighting"):
        setattr(trainer, name, vars(args)[name])
    trainer.precompute_ref_logps, trainer.aux_loss_enabled, trainer._tp_size = True, False, 1
    trainer._metrics, trainer._total_train_tokens = {"train": defaultdict(list)}, 0
    same = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, autocast=nullcontext)
    trainer.accelerator = same
    trainer.model = SimpleNamespace(training=True)
    mask = torch.cat([torch.zeros(2, 1), spread((1.0, 1.0)).ne(0)], dim=1).long()
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": torch.tensor([REFERENCE[0]]),
        "ref_rejected_logps": torch.tensor([REFERENCE[1]]),
    }
    return float(DPOTrainer._compute_loss(trainer, lambda **_: said(POLICY), inputs, False))


@pytest.mark.parametrize("name", VALUES)
def test_each_loss_has_the_value_of_its_formula(name: str) -> None:
    extra = {"label_smoothing": SMOOTHED[name]} if name in SMOOTHED else {}
    assert value({name: 1.0}, **extra) == pytest.approx(VALUES[name], abs=2e-6)


def test_weights_mix_losses_as_in_mixed_preference_optimisation() -> None:
    assert value(MPO) == pytest.approx(2.736270, abs=2e-6)


def test_every_loss_of_trl_can_be_named_and_gives_a_number() -> None:
    for name in LOSSES:
        smoothing = {"label_smoothing": 0.01} if name == "exo_pair" else {}
        assert torch.isfinite(torch.tensor(value({name: 1.0}, **smoothing)))


def test_the_sigmoid_loss_is_asked_for_where_none_is_named() -> None:
    assert value({}) == pytest.approx(VALUES["sigmoid"], abs=2e-6)
