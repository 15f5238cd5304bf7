"""Does the model use the picture? Held-out loss with the right picture, with another row's, and with none.

A low loss alone proves nothing: names and phrasing can be learnt from text. The gap between the right and a wrong
picture is what the connector carries.

Usage: ``proof = HeldOut(samples, encoder, precision, batch_size=8).measure(model)``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from io import BytesIO
from itertools import chain
from typing import cast

from PIL import Image
from torch import nn

from qlmm.data.encoding.encoder import Encoder
from qlmm.data.sample import Example, ImageRef, Row, Sample
from qlmm.model.numerics.precision import Precision
from qlmm.model.token_losses import evaluating, token_losses
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
        spare: Sequence[Example] = (),
    ) -> None:
        """Pair every row with another row's pictures, one of `spare` where no held-out row has other ones.

        For a model that needs a picture, a grey one stands for none.
        """
        self._needs_pictures = needs_pictures
        swapped = swap_pictures(samples, spare)
        self._pairs = [(row, other) for row, other in zip(samples, swapped, strict=True) if other is not None]
        self._encoder, self._precision, self._batch_size = encoder, precision, batch_size

    def measure(self, model: nn.Module) -> PictureProof | None:
        """The three losses in nats per supervised token, or None when no row has a picture to swap."""
        if not self._pairs:
            return None
        right = [row for row, _ in self._pairs]
        return PictureProof(
            rows=len(right),
            right=self.loss(model, right),
            shuffled=self.loss(model, [other for _, other in self._pairs]),
            none=self.loss(model, [self._without(row) for row in right]),
        )

    def _without(self, row: Sample) -> Sample:
        return row.with_images((_grey(),) * len(row.images)) if self._needs_pictures else row.without_images()

    def loss(self, model: nn.Module, samples: Sequence[Sample]) -> float:
        """Mean negative log-likelihood per supervised token over all rows."""
        total, tokens = 0.0, 0
        with evaluating(model):
            for start in range(0, len(samples), self._batch_size):
                batch = self._encoder.batch(samples[start : start + self._batch_size])
                inputs = {name: tensor.to(self._precision.device) for name, tensor in batch.items()}
                labels = inputs.pop("labels")
                with self._precision.autocast():
                    losses = token_losses(model, inputs, labels)
                total, tokens = total + float(losses.sum()), tokens + losses.numel()
        return total / max(tokens, 1)


@cache
def _grey() -> ImageRef:
    stream = BytesIO()
    Image.new("RGB", (224, 224), (127, 127, 127)).save(stream, "PNG")
    return ImageRef(data=stream.getvalue())


def swap_pictures(samples: Sequence[Row], spare: Sequence[Example] = ()) -> list[Row | None]:
    """Each row with the pictures of the next row, in cyclic order, that has as many but other ones; else None.

    Rows of `spare` follow after all others.
    """
    swapped: list[Row | None] = []
    for index, row in enumerate(samples):
        others: Iterable[Example] = chain(samples[index + 1 :], samples[:index], spare) if row.images else ()
        following = (other.images for other in others)
        found = next((other for other in following if len(other) == len(row.images) and other != row.images), None)
        swapped.append(cast("Row", row.with_images(found)) if found is not None else None)
    return swapped
