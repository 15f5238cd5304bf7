"""The processor of a family, made offline: its own classes, a tiny tokenizer, pictures of a few patches.

Usage: ``processor = build_processor("llava", ROWS["llava"])``
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from tests.families.row import Row
from tests.families.videos import NoVideos, videos_stood_in
from tests.tiny import tiny_tokenizer


def build_processor(name: str, row: Row) -> ProcessorMixin:
    """The family's own processor, with its chat template where it has one."""
    made = processor_class_from_name(row.processor_class or _known(PROCESSOR_MAPPING_NAMES, name, row))
    parts = {part: _part(part, name, row) for part in made.get_attributes()}
    told = {"chat_template": row.template} if "chat_template" in inspect.signature(made).parameters else {}
    with videos_stood_in():
        return made(**parts, **row.processor, **told)


def build_tokenizer(row: Row) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the family's special tokens, under the names its processor asks for."""
    begin, end, pad = row.ends
    optional = {"unk_token": row.unknown, "sep_token": row.separator}
    tokenizer = row.tokenizer_class(
        **_words(row),
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        extra_special_tokens=dict(row.named),
        **{key: token for key, token in optional.items() if token is not None},
    )
    wanted = (*row.special, *row.ids.values(), row.image)
    tokenizer.add_tokens([token for token in wanted if token is not None], special_tokens=True)
    return tokenizer


def _words(row: Row) -> dict[str, Any]:
    """The tiny vocabulary, as the tokenizer's class takes it: whole, or as words and merges."""
    backend = tiny_tokenizer().backend_tokenizer
    if row.tokenizer_class is PreTrainedTokenizerFast:
        return {"tokenizer_object": backend}
    model = json.loads(backend.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _part(part: str, name: str, row: Row) -> Any:
    """A tokenizer, or what sees, hears or watches; of the last two no setting depends on a picture."""
    if "tokenizer" in part:
        return build_tokenizer(row)
    if part == "feature_extractor":
        return _class(_known(FEATURE_EXTRACTOR_MAPPING_NAMES, name, row))()
    if part == "image_processor":
        return _class(_for_this_machine(_known(IMAGE_PROCESSOR_MAPPING_NAMES, name, row)))(**row.pictures)
    if not is_torchvision_available():
        return NoVideos()
    return _class(_for_this_machine(_known(VIDEO_PROCESSOR_MAPPING_NAMES, name, row)))(**row.videos)


def _known(registered: Mapping[str, Any], name: str, row: Row) -> Any:
    return registered[name] if registered.get(name) else registered[row.like or name]


def _for_this_machine(classes: Mapping[str, str]) -> str:
    """The class that the library chooses here; both see the same, but not to the last bit."""
    return classes["torchvision" if is_torchvision_available() and "torchvision" in classes else "pil"]


def _class(name: str) -> Any:
    return getattr(transformers, name)
