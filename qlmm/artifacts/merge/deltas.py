"""An adapter's effect on one weight at a time, computed by PEFT itself.

Each adapted layer is rebuilt alone, under its full name, with its real weight: PEFT then decides rank and scaling,
starts decompositions (PiSSA, OLoRA) and merges as it would in the whole model. Everything is fp32; the caller rounds
once.

Usage: ``deltas = Deltas(folder, meta_model, held_by(manifest, base)); merged = deltas.apply(name, weight)``
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import bitsandbytes
import torch
from bitsandbytes import functional
from peft import LoraConfig, LoraModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Conv1D

from qlmm.compat.peft_private import Linear, LoraLayer, ParamWrapper
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.model.numerics.quantization import QuantKind
from qlmm.model.parts.split import PEFT_PREFIX

__all__ = ["AsTrained", "Deltas", "Way", "requantised"]

Way = Literal["original", "trained"]

_ADAPTER = "default"
# Weights merged at a time: a megabyte in fp32.
CACHED = 1 << 18


@dataclass(frozen=True, slots=True)
class AsTrained:
    """How a run held its base.

    Attributes:
        dtype: of frozen weights.
        kind: how `quantised` were stored.
        quantised: names of the weights that bitsandbytes had.
    """

    dtype: torch.dtype
    kind: QuantKind
    quantised: frozenset[str]


def requantised(weight: Tensor, kind: QuantKind, dtype: torch.dtype) -> Tensor:
    """What a quantised layer computes with: quantised as the run's loader did, and dequantised again.

    Args:
        weight: (out, in), as in the base's files.
        kind: the run's storage.
        dtype: the run's compute dtype, which the loader casts to first.

    Returns:
        The same shape, in `dtype` (int8 in fp32).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cast = weight.to(dtype)
    if kind == "int8":
        stored: Any = bitsandbytes.nn.Int8Params(cast, requires_grad=False, has_fp16_weights=False).to(device)
        values: Tensor = functional.int8_vectorwise_dequant(stored.data, stored.SCB.to(stored.data.device))
        return values.cpu()
    packed: Any = bitsandbytes.nn.Params4bit(cast, requires_grad=False, quant_type=kind).to(device)
    values = functional.dequantize_4bit(packed.data, packed.quant_state)
    return values.to(dtype).cpu()


class Deltas:
    """What an adapter makes of the weights of its base."""

    def __init__(
        self, folder: Path, model: nn.Module, held: AsTrained | None, without: frozenset[str] = frozenset()
    ) -> None:
        """Look at an adapter; no weight is read yet.

        Args:
            folder: the adapter folder.
            model: the base on the meta device.
            held: how the run held the base, to merge into that; None merges into the weights as they are.
            without: names of the adapter's tensors that are left out.
        """
        opened: Any = safe_open(str(folder / ADAPTER_WEIGHTS), framework="pt")
        self._file, self._names = opened, frozenset(opened.keys()) - without
        self._left_out = without
        self._model = model
        self._held = held
        loaded: Any = LoraConfig.from_pretrained(str(folder))
        self._config = loaded
        self._layers = _adapted_layers(self._names)
        # PEFT names each fused expert weight in its configuration, and nests their LoRA weights in the file.
        self._experts = {
            f"{layer}.{name}": layer
            for layer in self._layers
            for name, _ in model.get_submodule(layer).named_parameters(recurse=False)
            if f"{layer}.{name}" in set(loaded.target_parameters or ())
        }

    @cached_property
    def replaced(self) -> frozenset[str]:
        """Names of tensors that the adapter holds whole."""
        return frozenset(name.removeprefix(PEFT_PREFIX) for name in self._names if ".lora_" not in name)

    @cached_property
    def merged(self) -> frozenset[str]:
        """Names of tensors that get a LoRA update."""
        linear = {f"{layer}.weight" for layer in self._layers if layer not in self._experts.values()}
        return frozenset(linear | self._experts.keys())

    @property
    def quantised(self) -> frozenset[str]:
        """Names of tensors that are quantised and dequantised first."""
        return self._held.quantised if self._held is not None else frozenset()

    @cached_property
    def touched(self) -> frozenset[str]:
        """Names of all tensors whose values change."""
        return self.replaced | self.merged | self.quantised

    @cached_property
    def beside(self) -> frozenset[str]:
        """Names of tensors whose LoRA update is left out: whoever adds it later needs them."""
        named = {f"{layer}.weight" for layer in _adapted_layers(self._left_out)}
        return frozenset(named & self._model.state_dict().keys())

    def apply(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """What becomes of a weight, computed in fp32 where the adapter touches it, and rounded once.

        Args:
            name: in the model; any other name is only held as the run held it.
            weight: as in the base's files; it is not changed.
            dtype: of the result.

        Raises:
            ModelError: A023 when the result is not finite.
        """
        if name in self.replaced:
            whole: Tensor = self._file.get_tensor(f"{PEFT_PREFIX}{name}")
            return whole.to(dtype)
        base = self._as_held(name, weight)
        if name not in self.merged:
            return base.to(dtype)
        with torch.no_grad():
            return self._merge(name, base, dtype)

    def _as_held(self, name: str, weight: Tensor) -> Tensor:
        """The weight as the run held it, or, merged into the original, in fp32."""
        if self._held is None or not weight.is_floating_point():
            return weight.float() if name in self.merged else weight
        if name in self._held.quantised:
            # bitsandbytes turns the weights of these layers round before it stores them.
            turned = isinstance(self._model.get_submodule(name.removesuffix(".weight")), Conv1D)
            held = requantised(weight.T if turned else weight, self._held.kind, self._held.dtype)
            return held.T if turned else held
        return weight.to(self._held.dtype)

    def _merge(self, name: str, base: Tensor, dtype: torch.dtype) -> Tensor:
        layer = self._experts.get(name, name.removesuffix(".weight"))
        parameter = name[len(layer) + 1 :]
        # A copy of the layer without weights, of which only the one that is wanted becomes real.
        leaf = copy.deepcopy(self._model.get_submodule(layer))
        for other, _ in list(leaf.named_parameters(recurse=False)):
            if other != parameter and layer not in self._experts.values():
                leaf.register_parameter(other, None)
        _set(leaf, parameter, base)
        tree = self._adapted(layer, leaf)
        for path, wrapper in tree.named_modules():
            if isinstance(wrapper, LoraLayer) and _holds(wrapper, parameter):
                self._fill(wrapper, path)
                return _merged_whole(wrapper, parameter, torch.empty(base.shape, dtype=dtype), name)
        raise ModelError.one("A024", f"PEFT does not adapt {name}", help="was the adapter made with another PEFT?")

    def _adapted(self, layer: str, leaf: nn.Module) -> LoraModel:
        """The layer alone, under its full name, with fresh LoRA weights as PEFT's configuration says."""
        config = copy.copy(self._config)
        experts = [name for name, owner in self._experts.items() if owner == layer]
        config.target_modules = set() if experts else {layer}
        config.target_parameters = experts or None
        config.exclude_modules, config.modules_to_save = None, None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LoraModel(_tree(layer, leaf), config, _ADAPTER)

    def _fill(self, wrapper: Any, path: str) -> None:
        """Put the adapter's weights of one layer into PEFT's."""
        own = path.removeprefix("model.")
        ours = [name for name, _ in wrapper.named_parameters() if name.startswith("lora_")]
        for name in ours:
            value = self._file.get_tensor(f"{PEFT_PREFIX}{own}.{_stored_as(name)}").float()
            around, _, last = name.rpartition(".")
            _set(wrapper.get_submodule(around), last, value)


def _stored_as(name: str) -> str:
    """The name PEFT writes for a parameter of a layer: without the adapter's, and DoRA's magnitude without `weight`."""
    stored = name.replace(f".{_ADAPTER}", "")
    return stored.removesuffix(".weight") if stored.startswith("lora_magnitude_vector") else stored


def _merged_whole(wrapper: LoraLayer, parameter: str, merged: Tensor, name: str) -> Tensor:
    """Fill `merged` with a layer's weight, some rows at a time."""
    with _one_thread():
        for rows in _blocks(wrapper, merged):
            block = _merged_rows(wrapper, parameter, rows)
            # A sum is finite only if all of it is, and takes one pass.
            if not torch.isfinite(block.sum()):
                raise _not_finite(name)
            merged[rows] = block
    return merged


@contextmanager
def _one_thread() -> Iterator[None]:
    """Blocks that fit into a cache are done before other threads have heard of them; waiting for those costs more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _not_finite(name: str) -> ModelError:
    return ModelError.one(
        "A023", f"{name} is not finite once merged", help="check the adapter with qlmm verify, and the base"
    )


def _blocks(wrapper: LoraLayer, weight: Tensor) -> Iterator[slice]:
    """Rows to merge at a time: of linear layers few enough for the processor's cache, of others all at once."""
    rows = weight.shape[0]
    step = max(1, CACHED * rows // weight.numel()) if isinstance(wrapper, Linear) else rows
    yield from (slice(at, min(at + step, rows)) for at in range(0, rows, step))


def _merged_rows(wrapper: Any, parameter: str, rows: slice) -> Tensor:
    """Some rows of a layer's weight, merged by PEFT: a layer of so many outputs is merged and thrown away."""
    inner = wrapper.get_base_layer()
    # Decomposing initialisations have changed the base weight by now, in the precision of the run.
    whole = {inner: (parameter, inner.get_parameter(parameter).data)}
    if isinstance(wrapper, Linear):
        whole[wrapper.lora_B[_ADAPTER]] = ("weight", wrapper.lora_B[_ADAPTER].weight.data)
        if _ADAPTER in wrapper.lora_magnitude_vector:
            magnitude = wrapper.lora_magnitude_vector[_ADAPTER]
            whole[magnitude] = ("weight", magnitude.weight.data)
    for module, (name, value) in whole.items():
        # A copy, because PEFT adds in place and what was read may be the file itself.
        _set(module, name, value[rows].to(torch.float32, copy=True))
    wrapper.merge()
    merged: Tensor = inner.get_parameter(parameter).data
    wrapper.merged_adapters.clear()
    for module, (name, value) in whole.items():
        _set(module, name, value)
    return merged


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _holds(wrapper: LoraLayer, parameter: str) -> bool:
    return not isinstance(wrapper, ParamWrapper) or wrapper.parameter_name == parameter


def _adapted_layers(names: frozenset[str]) -> frozenset[str]:
    """Full names of the layers that an adapter's file holds LoRA weights for."""
    layers = {name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in names if ".lora_" in name}
    return frozenset(layer.replace(".base_layer", "") for layer in layers)


def _tree(name: str, leaf: nn.Module) -> nn.Module:
    """Modules within modules, so that the leaf has its full name."""
    for part in reversed(name.split(".")):
        around = nn.Module()
        around.add_module(part, leaf)
        leaf = around
    return leaf
