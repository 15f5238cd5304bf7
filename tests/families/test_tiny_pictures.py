"""Pictures of one to three pixels are shown as they are: no processor takes rows of pixels for colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qlmm.data.encoding.marked_processor import stating_channels
from qlmm.data.media.images import BadImage, decode
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Origin, Sample, Turn
from tests.families.build import family, names
from tests.families.encoders import encoder, usable
from tests.families.rows import ROWS

TINY = ((1, 1), (5, 1), (1, 5), (3, 3), (9, 3), (2, 9))
BUILT = [name for name in names() if name in ROWS]
# Those that guess where nothing is stated; a test that finds none of them would prove nothing.
GUESSING = {"emu3", "video_llava"}


def drawn(size: tuple[int, int]) -> Image.Image:
    """Noise: rows, columns and colours cannot be exchanged unnoticed."""
    width, height = size
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def pixels(image_processor: Any, picture: Image.Image, **stated: str) -> np.ndarray[Any, Any]:
    output = image_processor(images=[picture], return_tensors="pt", **stated)
    # Idefics gives the tensor alone.
    return np.asarray(output if torch.is_tensor(output) else next(iter(output.values())))


@pytest.mark.parametrize("name", BUILT)
def test_the_colours_of_a_tiny_picture_are_on_their_own_axis(name: str) -> None:
    own = family(name).processor.image_processor
    for size in TINY:
        shown = pixels(stating_channels(own), drawn(size))
        assert np.array_equal(shown, pixels(own, drawn(size), input_data_format="channels_last")), size


@pytest.mark.parametrize("name", sorted(GUESSING))
def test_without_that_they_would_be_scrambled_or_refused(name: str) -> None:
    own = family(name).processor.image_processor
    assert not np.array_equal(pixels(own, drawn((3, 3))), pixels(stating_channels(own), drawn((3, 3))))
    with pytest.raises(ValueError, match="mean must have 1 elements"):
        pixels(own, drawn((1, 1)))


@pytest.mark.parametrize("name", usable())
def test_a_row_with_a_tiny_picture_becomes_a_batch(name: str) -> None:
    for size in TINY:
        ref = ImageRoot(".").ref(drawn(size))
        row = Sample((Turn("user", (ref, "what?")), Turn("assistant", ("a cat",))), Origin("x", 1))
        batch = encoder(name).batch([row])
        assert all(value.isfinite().all() for value in batch.values()), size


def test_longer_than_two_hundred_times_its_width_is_refused_for_all() -> None:
    with pytest.raises(BadImage, match="more than 200 times"):
        decode(ImageRoot(".").ref(drawn((1, 5000))))
