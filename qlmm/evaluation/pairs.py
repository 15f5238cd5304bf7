"""Does the model prefer the better answer, and because of the picture? Held-out pairs, with right and wrong pictures.

The loss of a preference run falls as soon as both answers become unlikely enough; what counts is which of the two the
model gives on rows it has not seen. With another row's pictures the better answer is seldom the better one: where as
many pairs are won, the preference was learnt from words alone.

Usage: ``proof = HeldOutPairs(plan.pairs, encoder, precision, batch_size=4).measure(model)``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.sample import Preference
from qlmm.evaluation.heldout import swap_pictures
from qlmm.model.numerics.precision import Precision
from qlmm.model.token_losses import supervised
from qlmm.proof.records import PairProof
from qlmm.training.trainers.reference import REFERENCE

__all__ = ["HeldOutPairs"]

# Of a vocabulary's log-probabilities in fp32; two such blocks are held at a time.
TOKENS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over all pairs: won ones, margins, and the divergence from the reference with its tokens."""

    rows: int = 0
    won: int = 0
    margin: float = 0.0
    kl: float = 0.0
    tokens: int = 0

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.rows + other.rows,
            self.won + other.won,
            self.margin + other.margin,
            self.kl + other.kl,
            self.tokens + other.tokens,
        )


class HeldOutPairs:
    """Held-out pairs, ready to be measured as often as wanted.

    Pairs without a picture, and those for which no other picture can be found, are not measured with swapped ones.
    """

    def __init__(self, pairs: Sequence[Preference], encoder: Encoder, precision: Precision, batch_size: int) -> None:
        """Give every pair another row's pictures.

        Args:
            pairs: held-out rows.
            encoder: encodes them.
            precision: what the model computes in.
            batch_size: pairs per forward pass, each of which has two rows.
        """
        self._pairs = pairs
        self._swapped = [other for other in swap_pictures(pairs) if other is not None]
        self._encoder, self._precision, self._batch_size = encoder, precision, batch_size

    def measure(self, model: nn.Module) -> PairProof | None:
        """Which answers the model prefers, or None when there are no pairs; its mode is put back after.

        The divergence is measured while the model holds a reference beside the adapter that is trained.
        """
        if not self._pairs:
            return None
        was_training = model.training
        model.eval()
        try:
            right, swapped = self._sums(model, self._pairs, kl=True), self._sums(model, self._swapped, kl=False)
        finally:
            model.train(was_training)
        return PairProof(
            rows=right.rows,
            won=right.won / right.rows,
            margin=right.margin / right.rows,
            swapped_rows=swapped.rows,
            won_swapped=swapped.won / swapped.rows if swapped.rows else None,
            margin_swapped=swapped.margin / swapped.rows if swapped.rows else None,
            kl=right.kl / right.tokens if right.tokens else None,
        )

    def _sums(self, model: nn.Module, pairs: Sequence[Preference], *, kl: bool) -> _Sums:
        """The sums over all pairs, the divergence only where it is asked for and there is a reference."""
        reference = model if kl and isinstance(model, PeftModel) and _has_reference(model) else None
        total = _Sums()
        for start in range(0, len(pairs), self._batch_size):
            batch = self._encoder.pairs(pairs[start : start + self._batch_size])
            total += _measured(model, batch, self._precision, reference)
        return total


@torch.no_grad()
def _measured(
    model: nn.Module, batch: dict[str, torch.Tensor], precision: Precision, reference: PeftModel | None
) -> _Sums:
    """The sums over one batch, chosen rows first, then rejected ones."""
    inputs = {name: tensor.to(precision.device) for name, tensor in batch.items()}
    labels = inputs["input_ids"].where(inputs.pop("completion_mask").bool(), IGNORED)
    with precision.autocast():
        logits, targets = supervised(model, inputs, labels)
    rows = labels[:, 1:].ne(IGNORED).nonzero()[:, 0]
    log_p = -nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()
    chosen, rejected = (
        torch.zeros(len(labels), dtype=torch.double, device=rows.device).index_add(0, rows, log_p).chunk(2)
    )
    chosen_tokens, rejected_tokens = rows.bincount(minlength=len(labels)).chunk(2)
    won = chosen / chosen_tokens > rejected / rejected_tokens
    sums = _Sums(len(chosen), int(won.sum()), float((chosen - rejected).sum()))
    if reference is None:
        return sums
    with _at_reference(reference), precision.autocast():
        start, _ = supervised(reference, inputs, labels)
    return sums + _Sums(kl=_divergence(logits, start), tokens=len(targets))


def _divergence(policy: torch.Tensor, reference: torch.Tensor) -> float:
    """KL(policy || reference) in nats, summed over tokens, from logits of shape (tokens, vocabulary)."""
    total = 0.0
    for start in range(0, len(policy), TOKENS_AT_ONCE):
        some = slice(start, start + TOKENS_AT_ONCE)
        log_p, log_q = (logits[some].float().log_softmax(dim=-1) for logits in (policy, reference))
        total += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.double))
    return total


def _has_reference(model: PeftModel) -> bool:
    # Trainers of preferences take seconds to import, and most runs have none.
    return REFERENCE in model.peft_config


@contextmanager
def _at_reference(model: PeftModel) -> Iterator[None]:
    """The model as it was at the start; what is trained stays what it was, though switching adapters changes it."""
    trained, active = {name: p.requires_grad for name, p in model.named_parameters()}, model.active_adapter
    model.set_adapter(REFERENCE)
    try:
        yield
    finally:
        model.set_adapter(active)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
