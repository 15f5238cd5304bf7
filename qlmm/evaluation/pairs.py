"""Does the model prefer the better answer, and because of the picture? Held-out pairs, with right and wrong pictures.

With another row's pictures the better answer is seldom the better one: where as many pairs are won, the preference was
learnt from words alone.

Usage: ``proof = HeldOutPairs(plan.pairs, encoder, precision, batch_size=4).measure(model)``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn

from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.sample import Example, Preference
from qlmm.evaluation.heldout import swap_pictures
from qlmm.model.numerics.precision import Precision
from qlmm.model.token_losses import evaluating, supervised
from qlmm.proof.records import PairProof
from qlmm.training.objective import REFERENCE

__all__ = ["HeldOutPairs"]

# Of a vocabulary's log-probabilities in fp32; two such blocks are in memory at a time.
TOKENS_AT_ONCE = 64


class HeldOutPairs:
    """Held-out pairs, ready to be measured as often as wanted; those with no other picture have no swapped figures."""

    def __init__(
        self,
        pairs: Sequence[Preference],
        encoder: Encoder,
        precision: Precision,
        batch_size: int,
        spare: Sequence[Example] = (),
    ) -> None:
        self._pairs = pairs
        self._swapped = [other for other in swap_pictures(pairs, spare) if other is not None]
        self._encoder, self._precision, self._batch_size = encoder, precision, batch_size

    def measure(self, model: nn.Module) -> PairProof | None:
        """Which answers the model prefers, and how far it is from its reference if it has one; None without pairs."""
        if not self._pairs:
            return None
        reference = model if isinstance(model, PeftModel) and REFERENCE in model.peft_config else None
        with evaluating(model):
            rows, won, margin, kl, tokens = self._sums(model, self._pairs, reference)
            others, won_swapped, margin_swapped, _, _ = self._sums(model, self._swapped, None)
        return PairProof(
            rows=int(rows),
            won=won / rows,
            margin=margin / rows,
            swapped_rows=int(others),
            won_swapped=won_swapped / others if others else None,
            margin_swapped=margin_swapped / others if others else None,
            kl=kl / tokens if tokens else None,
        )

    def _sums(self, model: nn.Module, pairs: Sequence[Preference], reference: PeftModel | None) -> list[float]:
        """Pairs, won ones, margins, and where there is a reference, the divergence from it and its tokens."""
        total = torch.zeros(5, dtype=torch.double)
        for start in range(0, len(pairs), self._batch_size):
            batch = self._encoder.pairs(pairs[start : start + self._batch_size])
            total += torch.tensor(self._batch_sums(model, batch, reference), dtype=torch.double)
        found: list[float] = total.tolist()
        return found

    def _batch_sums(self, model: nn.Module, batch: dict[str, Tensor], reference: PeftModel | None) -> tuple[float, ...]:
        """The sums of `_sums` over one batch, which has chosen rows first, then rejected ones."""
        inputs = {name: tensor.to(self._precision.device) for name, tensor in batch.items()}
        labels = inputs["input_ids"].where(inputs.pop("completion_mask").bool(), IGNORED)
        with self._precision.autocast():
            logits, targets = supervised(model, inputs, labels)
        rows = labels[:, 1:].ne(IGNORED).nonzero()[:, 0]
        log_p = -nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()
        sums = torch.zeros(len(labels), dtype=torch.double, device=rows.device).index_add(0, rows, log_p)
        (chosen, rejected), tokens = sums.chunk(2), rows.bincount(minlength=len(labels)).chunk(2)
        won = int((chosen / tokens[0] > rejected / tokens[1]).sum())
        margin, kl, compared = float((chosen - rejected).sum()), 0.0, 0
        if reference is not None:
            with _at_reference(reference), self._precision.autocast():
                start, _ = supervised(reference, inputs, labels)
            kl, compared = _divergence(logits, start), len(targets)
        return len(chosen), won, margin, kl, compared


def _divergence(policy: Tensor, reference: Tensor) -> float:
    """KL(policy || reference) in nats, summed over tokens, from logits of shape (tokens, vocabulary)."""
    total = 0.0
    for start in range(0, len(policy), TOKENS_AT_ONCE):
        some = slice(start, start + TOKENS_AT_ONCE)
        log_p, log_q = (logits[some].float().log_softmax(dim=-1) for logits in (policy, reference))
        total += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.double))
    return total


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
