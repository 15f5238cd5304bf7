"""An adapter's effect on one weight at a time, computed by PEFT itself.

Each adapted layer is rebuilt alone, under its full name, with its real weight: PEFT then decides rank and scaling,
starts decompositions (PiSSA, OLoRA) and merges as it would in the whole model. Everything is fp32; the caller rounds
once.

Usage: ``deltas = Deltas(folder, meta_model, AsTrained.of(manifest, base)); merged = deltas.apply(name, weight, dtype)``
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bitsandbytes
import torch
from bitsandbytes import functional
from peft import LoraConfig, LoraModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Conv1D

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.compat.peft_private import Linear, LoraLayer, ParamWrapper
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind
from qlmm.model.parts.split import PEFT_PREFIX

__all__ = ["AsTrained", "Deltas", "Way", "requantised"]

Way = Literal["original", "trained"]

_ADAPTER = "default"
# Weights merged at a time: a megabyte in fp32.
CACHED = 1 << 18


@dataclass(frozen=True, slots=True)
class AsTrained:
    """How a run stored its base.

    Attributes:
        dtype: of frozen weights.
        kind: how `quantised` were stored.
        quantised: names of the weights that bitsandbytes had.
    """

    dtype: torch.dtype
    kind: QuantKind
    quantised: frozenset[str] = frozenset()

    @classmethod
    def of(cls, manifest: Manifest, base: Base) -> AsTrained:
        """The form that the base had in an adapter's run."""
        kind, shape = manifest.recipe.base.quantize, base.shape
        dtype = Precision("cuda", manifest.precision).compute
        if kind == "none":
            return cls(dtype, kind)
        # Classes derived from these are left alone by bitsandbytes' loader.
        linear = {name for name, module in shape.model.named_modules() if type(module) in (nn.Linear, Conv1D)}
        language = {name for name in linear - base.unquantised if shape.parts.of(name) == "language"}
        return cls(dtype, kind, frozenset(f"{name}.weight" for name in language))


def requantised(weight: Tensor, kind: QuantKind, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that a quantised layer computes with, in `dtype`, or in fp32 from int8.

    It is cast to the run's compute `dtype`, quantised as the run's loader did, and dequantised.
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
        self, folder: Path, model: nn.Module, stored: AsTrained | None, without: frozenset[str] = frozenset()
    ) -> None:
        """Read the configuration and names of the adapter in a folder; no weight is read yet.

        `model` is the base on the meta device. `stored` is how the run stored the base, to merge into that; None merges
        into the weights as they are. `without` names tensors of the adapter that are left out.
        """
        opened: Any = safe_open(str(folder / ADAPTER_WEIGHTS), framework="pt")
        self._file = opened
        self._config: Any = LoraConfig.from_pretrained(str(folder))
        self._model, self._stored = model, stored
        names = frozenset(opened.keys()) - without
        self._layers = _adapted_layers(names)
        # PEFT names each fused expert weight in its configuration, and nests their LoRA weights in the file.
        self._experts = {
            f"{layer}.{name}": layer
            for layer in self._layers
            for name, _ in model.get_submodule(layer).named_parameters(recurse=False)
            if f"{layer}.{name}" in set(self._config.target_parameters or ())
        }
        # Tensors that the adapter has whole.
        self.replaced = frozenset(name.removeprefix(PEFT_PREFIX) for name in names if ".lora_" not in name)
        linear = {f"{layer}.weight" for layer in self._layers if layer not in self._experts.values()}
        # Tensors that get a LoRA update.
        self.merged = frozenset(linear | self._experts.keys())
        quantised = stored.quantised if stored is not None else frozenset()
        # All tensors whose values change.
        self.touched = self.replaced | self.merged | quantised
        # Tensors whose LoRA update is left out: they must be in the result, for whoever adds it later.
        beside = frozenset(f"{layer}.weight" for layer in _adapted_layers(without))
        self.beside = beside.intersection(model.state_dict())

    def apply(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """What becomes of a weight, computed in fp32 where the adapter touches it, and rounded once.

        Args:
            name: in the model; a weight of any other name is only stored as the run stored it.
            weight: as in the base's files; it is not changed.
            dtype: of the result.

        Raises:
            ModelError: A023 when the result is not finite.
        """
        if name in self.replaced:
            whole: Tensor = self._file.get_tensor(f"{PEFT_PREFIX}{name}")
            return whole.to(dtype)
        base = self._as_stored(name, weight)
        if name not in self.merged:
            return base.to(dtype)
        with torch.no_grad():
            return self._merge(name, base, dtype)

    def _as_stored(self, name: str, weight: Tensor) -> Tensor:
        """The weight as the run stored it, or, merged into the original, in fp32."""
        stored = self._stored
        if stored is None or not weight.is_floating_point():
            return weight.float() if name in self.merged else weight
        if name in stored.quantised:
            # bitsandbytes transposes the weights of these layers before it stores them.
            transposed = isinstance(self._model.get_submodule(name.removesuffix(".weight")), Conv1D)
            values = requantised(weight.T if transposed else weight, stored.kind, stored.dtype)
            return values.T if transposed else values
        return weight.to(stored.dtype)

    def _merge(self, name: str, base: Tensor, dtype: torch.dtype) -> Tensor:
        layer = self._experts.get(name, name.removesuffix(".weight"))
        parameter = name.removeprefix(f"{layer}.")
        # A copy of the layer without weights, of which only the one that is wanted becomes real.
        leaf = copy.deepcopy(self._model.get_submodule(layer))
        for other, _ in list(leaf.named_parameters(recurse=False)):
            if other != parameter and layer not in self._experts.values():
                leaf.register_parameter(other, None)
        _set(leaf, parameter, base)
        tree = self._adapted(layer, leaf)
        for path, wrapper in tree.named_modules():
            fits = not isinstance(wrapper, ParamWrapper) or wrapper.parameter_name == parameter
            if isinstance(wrapper, LoraLayer) and fits:
                self._fill(wrapper, path)
                return _merged_whole(wrapper, parameter, torch.empty(base.shape, dtype=dtype), name)
        raise ModelError.one("A024", f"PEFT does not adapt {name}", help="was the adapter made with another PEFT?")

    def _adapted(self, layer: str, leaf: nn.Module) -> LoraModel:
        """The layer alone, under its full name, with fresh LoRA weights by PEFT's configuration."""
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
        for name in [name for name, _ in wrapper.named_parameters() if name.startswith("lora_")]:
            value = self._file.get_tensor(f"{PEFT_PREFIX}{own}.{_stored_as(name)}").float()
            around, _, last = name.rpartition(".")
            _set(wrapper.get_submodule(around), last, value)


def _stored_as(name: str) -> str:
    """The name PEFT writes for a parameter of a layer: without the adapter's, and DoRA's magnitude without `weight`."""
    stored = name.replace(f".{_ADAPTER}", "")
    return stored.removesuffix(".weight") if stored.startswith("lora_magnitude_vector") else stored


def _merged_whole(wrapper: LoraLayer, parameter: str, merged: Tensor, name: str) -> Tensor:
    """Fill `merged` with a layer's weight, some rows at a time: few enough for the processor's cache if linear."""
    rows = merged.shape[0]
    step = max(1, CACHED * rows // merged.numel()) if isinstance(wrapper, Linear) else rows
    with _one_thread():
        for at in range(0, rows, step):
            block = _merged_rows(wrapper, parameter, slice(at, at + step))
            # A sum is finite only if all of it is, and takes one pass.
            if not torch.isfinite(block.sum()):
                help = "check the adapter with qlmm verify, and the base"
                raise ModelError.one("A023", f"{name} is not finite once merged", help=help)
            merged[at : at + step] = block
    return merged


@contextmanager
def _one_thread() -> Iterator[None]:
    """Blocks that fit into a cache are done before other threads wake up; waiting for those costs more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def _adapted_layers(names: frozenset[str]) -> frozenset[str]:
    """Full names of the layers that LoRA weights of these names belong to."""
    layers = {name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in names if ".lora_" in name}
    return frozenset(layer.replace(".base_layer", "") for layer in layers)


def _tree(name: str, leaf: nn.Module) -> nn.Module:
    """Modules within modules, so that the leaf has its full name."""
    for part in reversed(name.split(".")):
        around = nn.Module()
        around.add_module(part, leaf)
        leaf = around
    return leaf
