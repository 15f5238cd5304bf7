"""Whether a checkpoint has all of its model's weights and no others.

transformers gives a weight that is missing random values and warns: a run on them would look like any other. The
headers of files that are on this machine are compared before a weight is read, the rest when it is loaded.

Usage: ``check_headers(model_class, place, config, "base.model"); load_whole(AutoModel, place, config, "base.model")``
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from qlmm.compat.transformers_models import load_state_dict
from qlmm.core.errors import ModelError
from qlmm.model.assembled.published import WEIGHTS, open_checkpoint
from qlmm.model.loading.hub import Located, reading

__all__ = ["check_headers", "load_whole"]

_MOST_NAMED = 3
_HELP = "fetch the base's files again, all from one revision"


def check_headers(kind: type[PreTrainedModel], place: Located, config: PreTrainedConfig, key: str) -> None:
    """Compare a model's tensors with the headers of its files, as far as those are on this machine.

    Raises:
        ModelError: M007 with tensors that are missing, too many or of another shape, or a file that cannot be read;
            M151, M152 for files that are not there, or an index that is damaged.
    """
    folder = _folder(place)
    # What a quantised checkpoint stores of a weight is known to its quantiser alone.
    if folder is None or vars(config).get("quantization_config") is not None:
        return
    state: dict[str, Tensor] = {}
    for file in open_checkpoint(str(folder)).files:
        try:
            state |= load_state_dict(str(file), map_location="meta")
        except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise _refused(place, key, f"{file.name} cannot be read: {str(error).splitlines()[0]}") from error
    # By transformers' own rules for names that changed, on the meta device.
    headers: dict[str, Any] = {"state_dict": state, "device_map": {"": torch.device("meta")}}
    _load(kind, None, place, config, key, headers)


def load_whole(kind: Any, place: Located, config: PreTrainedConfig, key: str, **options: Any) -> PreTrainedModel:
    """The checkpoint loaded by an Auto class; raises M007 when it is not whole, and as `reading`."""
    return _load(kind, place.path, place, config, key, options)


def _load(
    kind: Any, path: str | None, place: Located, config: PreTrainedConfig, key: str, wishes: Mapping[str, Any]
) -> PreTrainedModel:
    with reading(key, place):
        model, found = kind.from_pretrained(
            path,
            config=copy.deepcopy(config),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **place.options,
            **wishes,
        )
    faults = [f"it lacks {name}" for name in sorted(found["missing_keys"])]
    faults += [f"it has {name}, which no such model has" for name in _strange(model, key, found["unexpected_keys"])]
    faults += [f"{name} is {_by(there)}, not {_by(asked)}" for name, there, asked in sorted(found["mismatched_keys"])]
    if faults:
        more = f"; and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
        raise _refused(place, key, "; ".join(faults[:_MOST_NAMED]) + more)
    whole: PreTrainedModel = model
    return whole


def _strange(model: PreTrainedModel, key: str, unexpected: Iterable[str]) -> list[str]:
    """Tensors that have no place in the model; what stood on top of a tower, or beside it, is not asked for."""
    own = {name for name, _ in model.named_children()}
    return sorted(name for name in unexpected if key != "base.vision" or name.partition(".")[0] in own)


def _folder(place: Located) -> Path | None:
    """The folder that has the weights; None where they have yet to be fetched."""
    if Path(place.path).is_dir():
        return Path(place.path)
    for name in WEIGHTS:
        for one in (name, f"{name}.index.json"):
            cached = try_to_load_from_cache(place.path, one, revision=place.revision)
            if isinstance(cached, str):
                return Path(cached).parent
    return None


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _refused(place: Located, key: str, why: str) -> ModelError:
    return ModelError.one("M007", f"{place.name} is not a whole model: {why}", help=_HELP, key=key)
