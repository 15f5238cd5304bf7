"""Which tensors an adapter must hold, found from its recipe and its base's configuration alone.

PEFT loads an adapter for a base with fewer layers, or with a tensor missing, with a warning at most.

Usage: ``check_tensors(folder, manifest, base)``
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.safetensors_stream import DTYPES
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qlmm.model.loading.base import Base, Blueprint
from qlmm.model.parts.split import PEFT_PREFIX, PartName, Parts
from qlmm.model.peft.adapter import attach, place

__all__ = ["check_tensors", "expected_tensors", "found_tensors"]

MOST_NAMED = 3
# LoRA is always trained; a module that is only carried along stays in the precision of its run.
_LORA, _WHOLE = ("F32",), ("F32", "BF16", "F16")

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Shape = tuple[int, ...]


def check_tensors(folder: Path, manifest: Manifest, base: Base) -> str:
    """Compare names, shapes and dtypes of an adapter's tensors with what its recipe makes of its base.

    Args:
        folder: the adapter folder.
        manifest: its manifest.
        base: its base.

    Raises:
        ModelError: A017 with the first tensors that are missing, too many or different.
    """
    found = found_tensors(folder)
    expected = expected_tensors(folder, manifest, base.shape)
    wrong = [
        f"{name} is {_said(found.get(name))}, not {_said(expected.get(name))}"
        for name in sorted(expected.keys() | found.keys())
        if not _fits(found.get(name), expected.get(name))
    ]
    if wrong:
        raise ModelError.one(
            "A017",
            f"{len(wrong)} tensors do not fit the base: {'; '.join(wrong[:MOST_NAMED])}",
            help="the adapter was trained on another base, or its file was changed; fetch both again",
        )
    return f"{len(found)} tensors fit the base by name, shape and dtype"


def found_tensors(folder: Path) -> dict[str, tuple[Shape, tuple[str, ...]]]:
    """Shape and dtype of each tensor of an adapter's file; no weight is read.

    Raises:
        ModelError: A003 when the file cannot be read.
    """
    path = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(str(path), framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
            return {name: (tuple(one.get_shape()), (str(one.get_dtype()),)) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError.one("A003", f"{path} cannot be read: {error}", help="fetch the adapter again") from error


def expected_tensors(folder: Path, manifest: Manifest, shape: Blueprint) -> dict[str, tuple[Shape, tuple[str, ...]]]:
    """Shape and allowed dtypes of what PEFT stores for the recipe's placement.

    Parts that an earlier adapter trained and this one carries are named in PEFT's configuration only.
    """
    section = manifest.recipe.adapter
    placement = place(shape.model, shape.parts, section, earlier=_whole(folder, shape.parts))
    # Initialisations that decompose weights change no name and no shape, and have nothing to decompose here.
    plain = section if section.variant == "dora" else section.model_copy(update={"variant": "plain"})
    with torch.device("meta"):
        wrapped = attach(copy.deepcopy(shape.model), placement, plain, seed=0)
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    values = dict(wrapped.named_parameters())
    state |= {f"{PEFT_PREFIX}{name}": values[f"{PEFT_PREFIX}{name}"] for name in placement.bare}
    return {name: (tuple(value.shape), _dtypes(name, value)) for name, value in state.items()}


def _dtypes(name: str, value: torch.Tensor) -> tuple[str, ...]:
    """What a tensor may be stored as; a batch norm counts its batches in integers."""
    if not value.is_floating_point():
        return (_NAMES[value.dtype],)
    return _LORA if ".lora_" in name else _WHOLE


def _whole(folder: Path, parts: Parts) -> frozenset[PartName]:
    """The parts that PEFT's configuration says are stored whole."""
    modules = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8")).get("modules_to_save") or []
    try:
        return frozenset(parts.of(module) for module in modules)
    except KeyError as error:
        raise ModelError.one(
            "A017", f"the base has no {error.args[0]}, which the adapter holds", help="is this the adapter's base?"
        ) from error


def _fits(found: tuple[Shape, tuple[str, ...]] | None, expected: tuple[Shape, tuple[str, ...]] | None) -> bool:
    if found is None or expected is None:
        return False
    return found[0] == expected[0] and set(found[1]) <= set(expected[1])


def _said(one: tuple[Shape, tuple[str, ...]] | None) -> str:
    return "missing" if one is None else f"{' x '.join(map(str, one[0]))} {one[1][0]}"
