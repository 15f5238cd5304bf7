"""Does the model use the picture? Held-out loss with the right picture, with another row's, and with none.

A low loss alone proves nothing: names and phrasing can be learnt from text. The gap between the right and a wrong
picture is what the connector carries.

Usage: ``proof = HeldOut(samples, encoder, precision, batch_size=8).measure(model)``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from io import BytesIO
from typing import cast

import torch
from PIL import Image
from torch import nn

from qlmm.data.encoding.encoder import Encoder
from qlmm.data.sample import ImageRef, Row, Sample
from qlmm.model.numerics.precision import Precision
from qlmm.model.token_losses import token_losses
from qlmm.proof.records import PictureProof

__all__ = ["HeldOut", "swap_pictures"]


class HeldOut:
    """Held-out rows with pictures, ready to be measured as often as wanted.

    Rows without a picture, and rows for which no other picture can be found, are left out of all three losses,
    so that these stay comparable.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: Encoder,
        precision: Precision,
        batch_size: int,
        *,
        needs_pictures: bool = False,
    ) -> None:
        """Pair every row with another row's pictures.

        Args:
            samples: held-out rows.
            encoder: encodes them.
            precision: what the model computes in.
            batch_size: rows per forward pass.
            needs_pictures: the model cannot do without a picture; a grey one then stands for none.
        """
        self._needs_pictures = needs_pictures
        swapped = swap_pictures(samples)
        self._pairs = [(row, other) for row, other in zip(samples, swapped, strict=True) if other is not None]
        self._encoder, self._precision, self._batch_size = encoder, precision, batch_size

    @property
    def rows(self) -> int:
        """How many rows are measured."""
        return len(self._pairs)

    def measure(self, model: nn.Module) -> PictureProof | None:
        """The three losses in nats per supervised token, or None when no row has a picture to swap."""
        if not self._pairs:
            return None
        right = [row for row, _ in self._pairs]
        return PictureProof(
            rows=self.rows,
            right=self.loss(model, right),
            shuffled=self.loss(model, [other for _, other in self._pairs]),
            none=self.loss(model, [self._without(row) for row in right]),
        )

    def _without(self, row: Sample) -> Sample:
        return row.with_images((_grey(),) * len(row.images)) if self._needs_pictures else row.without_images()

    def loss(self, model: nn.Module, samples: Sequence[Sample]) -> float:
        """Mean negative log-likelihood per supervised token over all rows; the model's mode is put back after."""
        was_training = model.training
        model.eval()
        total, tokens = 0.0, 0
        try:
            for batch in self._batches(samples):
                loss, count = _measured(model, batch, self._precision)
                total, tokens = total + loss, tokens + count
        finally:
            model.train(was_training)
        return total / max(tokens, 1)

    def _batches(self, samples: Sequence[Sample]) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(samples), self._batch_size):
            yield self._encoder.batch(samples[start : start + self._batch_size])


@torch.no_grad()
def _measured(model: nn.Module, batch: dict[str, torch.Tensor], precision: Precision) -> tuple[float, int]:
    """Summed loss and number of supervised tokens of one batch."""
    inputs = {name: tensor.to(precision.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels")
    with precision.autocast():
        losses = token_losses(model, inputs, labels)
    return float(losses.sum()), losses.numel()


@cache
def _grey() -> ImageRef:
    """A picture that shows nothing."""
    stream = BytesIO()
    Image.new("RGB", (224, 224), (127, 127, 127)).save(stream, "PNG")
    return ImageRef(data=stream.getvalue())


def swap_pictures(samples: Sequence[Row]) -> list[Row | None]:
    """Each row with the pictures of the next row, in cyclic order, that has as many but other ones; else None."""
    return [_swapped(samples, index) for index in range(len(samples))]


def _swapped(samples: Sequence[Row], index: int) -> Row | None:
    own = samples[index].images
    if not own:
        return None
    for step in range(1, len(samples)):
        other = samples[(index + step) % len(samples)].images
        if len(other) == len(own) and other != own:
            return cast("Row", samples[index].with_images(other))
    return None
