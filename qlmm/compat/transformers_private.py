"""Private names of transformers that are quick to import; `transformers_models` has those that load model code.

* ``render_jinja_template``: renders a chat and gives the character spans of its generation markers. Read from
  transformers 5.23. Public instead: ``apply_chat_template``, once it gives spans and not a mask of tokens.

Usage: ``kind = attention_of(model.config)``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, TrainerCallback
from transformers.utils import cached_file
from transformers.utils.chat_template_utils import render_jinja_template

__all__ = [
    "attention_by",
    "attention_of",
    "fetched_file",
    "lasting_facts",
    "picture_tokens",
    "render_jinja_template",
    "tracker_kind",
]

# The name that a function of attention has among transformers' own.
_ATTENDING = "qlmm"
# Facts of the place and the release that a configuration was read with, and not of the model.
_INCIDENTAL = {"transformers_version", "_name_or_path", "_commit_hash", "dtype", "architectures"}


def attention_of(config: PreTrainedConfig) -> str:
    """How a model computes attention: sdpa, eager, flash_attention_2 and so on.

    Read from transformers 5.23 (``config._attn_implementation``). Public instead: an attribute without underscore.
    """
    return str(config._attn_implementation)


@contextmanager
def attention_by(config: PreTrainedConfig, attend: Callable[..., Any]) -> Iterator[None]:
    """While the block runs, a model with this configuration attends by a function, with masks made as for sdpa.

    Read from transformers 5.23 (``config._attn_implementation``, which modules read at every call). Public instead:
    ``set_attn_implementation``, once it takes a function and can be undone.
    """
    kept = config._attn_implementation
    AttentionInterface.register(_ATTENDING, attend)
    AttentionMaskInterface.register(_ATTENDING, AttentionMaskInterface()["sdpa"])
    config._attn_implementation = _ATTENDING
    try:
        yield
    finally:
        config._attn_implementation = kept
        # Names cannot be taken back; this one must not keep a model alive.
        AttentionInterface.register(_ATTENDING, AttentionInterface()["sdpa"])


def lasting_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration's facts about the model itself: the same on every machine and in every release.

    Read from transformers 5.23, whose dictionary has private keys. Public instead: a dictionary without them.
    """
    return {key: value for key, value in config.to_diff_dict().items() if key not in _INCIDENTAL}


def picture_tokens(processor: Any, width: int, height: int) -> int:
    """How many tokens a processor claims for one picture, which it does not see.

    Read from transformers 5.23, which made it for vLLM; not every processor can answer, and some answer wrongly.
    Public instead: none is planned; without it a blank picture is prepared and its tokens are counted.
    """
    counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens
    return int(counts[0]) if counts else 0


def tracker_kind(name: str) -> type[TrainerCallback]:
    """The callback that brings a tracker its settings and figures; its package is imported once it is made.

    Read from transformers 5.23 (``transformers.integrations``). Public instead: ``report_to``, whose callbacks the
    trainer makes and calls itself, so that an error of theirs ends the run.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    (kind,) = get_reporting_integration_callbacks([name])
    found: type[TrainerCallback] = kind
    return found


def fetched_file(source: str, name: str, revision: str | None) -> Path | None:
    """A file of a model, from its folder, the cache or the Hub; None where the model has none of that name.

    Read from transformers 5.23, where a private argument turns the error for a missing file into None.
    Public instead: ``huggingface_hub.hf_hub_download``, with errors of its own for each kind of absence.
    """
    found = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found is not None else None
