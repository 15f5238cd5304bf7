"""Stand-ins for two optional packages that only the *video* half of some processors needs.

Without torchvision the library has no video processor, yet a processor with a place for one refuses ``None``.
Without num2words a SmolVLM processor refuses to be made. Pictures need neither.

Usage: ``with videos_stood_in(): processor = AutoProcessor.from_pretrained(folder)``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from transformers import processing_utils
from transformers.models.auto import video_processing_auto
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import VideoProcessorMixin


class NoVideos(VideoProcessorMixin):
    """Takes the place of a video processor and can do nothing."""

    num_frames = 1
    fps = 1
    merge_size = 2
    slice_mode = True
    downsample_mode = "16x"
    font = ""

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoVideos:
        """What ``AutoVideoProcessor`` is asked for."""
        return cls()


@contextmanager
def videos_stood_in() -> Iterator[None]:
    """Inside, processors with a video half are made and loaded as on a machine that has both packages."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_torchvision_available():
            patch.setattr(video_processing_auto, "AutoVideoProcessor", NoVideos)
            # Every part is checked against a class that the package only has beside torchvision.
            patch.setattr(
                processing_utils.transformers_module, "VideoProcessorMixin", VideoProcessorMixin, raising=False
            )
        if processing_smolvlm.num2words is None:
            patch.setattr(processing_smolvlm, "num2words", str)
        yield
