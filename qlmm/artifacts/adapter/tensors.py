"""An adapter's tensors: which its file has, and which its recipe and its base's configuration ask for.

PEFT loads an adapter for a base with fewer layers, or with a tensor missing, with a warning at most.

Usage: ``check_tensors(folder, manifest, base)``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.safetensors_stream import DTYPE_NAMES
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.model.loading.base import Base, Blueprint
from qlmm.model.numerics.finite import is_finite
from qlmm.model.parts.split import PEFT_PREFIX, PartName, Parts
from qlmm.model.peft.adapter import place, rehearse
from qlmm.model.peft.config_file import read_config

__all__ = ["adapter_weights", "check_finite", "check_tensors", "found_tensors"]

MOST_NAMED = 3
# What was trained is stored in fp32; what is only carried along, or counted, stays in the precision of its run.
_TRAINED, _CARRIED = ("F32",), ("F32", "BF16", "F16")

# A tensor's shape, and the dtype it has or those that it may have.
Facts = tuple[tuple[int, ...], tuple[str, ...]]


def check_tensors(folder: Path, manifest: Manifest, base: Base) -> str:
    """Compare names, shapes and dtypes of an adapter's tensors with what its recipe makes of its base.

    Raises:
        ModelError: A017 with the first tensors that are missing, too many or different.
    """
    found, expected = found_tensors(folder), _expected_tensors(folder, manifest, base.shape)
    wrong = [
        f"{name} is {_shown(found.get(name))}, not {_shown(expected.get(name))}"
        for name in sorted(expected.keys() | found.keys())
        if not _fits(found.get(name), expected.get(name))
    ]
    if wrong:
        message = f"{len(wrong)} tensors do not fit the base: {'; '.join(wrong[:MOST_NAMED])}"
        help = "the adapter was trained on another base, or its file was changed; fetch both again"
        raise ModelError.one("A017", message, help=help)
    return f"{len(found)} tensors fit the base by name, shape and dtype"


def check_finite(folder: Path) -> str:
    """Refuse weights that are not numbers.

    Raises:
        ModelError: A015 with the tensors, A003 when the file cannot be read.
    """
    with adapter_weights(folder) as file:
        names = list(file.keys())
        wrong = [name for name in names if not is_finite(file.get_tensor(name))]
    if wrong:
        help = "train again with a lower training.learning_rate; such an adapter answers nonsense"
        raise ModelError.one("A015", f"{len(wrong)} tensors have NaN or infinity, such as {wrong[0]}", help=help)
    return f"{len(names)} tensors, all of them finite"


@contextmanager
def adapter_weights(folder: Path) -> Iterator[Any]:
    """The adapter's weights, open for reading.

    Raises:
        ModelError: A003 when the file cannot be read.
    """
    path = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError.one("A003", f"{path} cannot be read: {error}", help="fetch the adapter again") from error


def found_tensors(folder: Path) -> dict[str, Facts]:
    """Shape and dtype of each tensor of an adapter's file; no weight is read.

    Raises:
        ModelError: A003 when the file cannot be read.
    """
    with adapter_weights(folder) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
        return {name: (tuple(one.get_shape()), (str(one.get_dtype()),)) for name, one in slices.items()}


def _expected_tensors(folder: Path, manifest: Manifest, shape: Blueprint) -> dict[str, Facts]:
    """Shape and allowed dtypes of what PEFT stores for the recipe's placement.

    Parts that an earlier adapter trained and this one carries are named in PEFT's configuration only.
    """
    section = manifest.recipe.adapter
    placement = place(shape.model, shape.parts, section, earlier=_whole(folder, shape.parts))
    wrapped = rehearse(shape.model, placement, section)
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    values = dict(wrapped.named_parameters())
    trained = {_stored(name) for name, value in values.items() if value.requires_grad}
    state |= {f"{PEFT_PREFIX}{name}": values[f"{PEFT_PREFIX}{name}"] for name in placement.bare}
    return {name: (tuple(value.shape), _dtypes(value, trained=name in trained)) for name, value in state.items()}


def _stored(name: str) -> str:
    """What PEFT calls a parameter in its file."""
    return name.replace(".modules_to_save.default.", ".").replace(".default", "")


def _dtypes(value: torch.Tensor, *, trained: bool) -> tuple[str, ...]:
    """What a tensor may be stored as; a batch norm counts its batches in integers."""
    if not value.is_floating_point():
        return (DTYPE_NAMES[value.dtype],)
    return _TRAINED if trained else _CARRIED


def _whole(folder: Path, parts: Parts) -> frozenset[PartName]:
    """The parts that PEFT's configuration lists as stored whole."""
    try:
        return frozenset(parts.of(module) for module in read_config(folder).modules_to_save or ())
    except KeyError as error:
        help = "is this the adapter's base?"
        raise ModelError.one("A017", f"the base has no {error.args[0]}, which the adapter has", help=help) from error


def _fits(found: Facts | None, expected: Facts | None) -> bool:
    if found is None or expected is None:
        return False
    return found[0] == expected[0] and set(found[1]) <= set(expected[1])


def _shown(one: Facts | None) -> str:
    return "missing" if one is None else f"{' x '.join(map(str, one[0]))} {one[1][0]}"
