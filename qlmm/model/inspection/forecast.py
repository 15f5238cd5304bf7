"""How much memory a step takes at its peak, part by part, from configurations alone.

The model and its sources are in docs/decisions/043-memory-forecast.md. Everything is counted on the meta device:
weights by their storage, and of every layer the tensors that its backward pass needs.

Usage: ``need = Anatomy.of(model, parts, placement, precision, "nf4", dropout=True).forecast(Load(…)); need.total``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import GradientCheckpointingLayer, PreTrainedModel

from qlmm.model.inspection.memory import CODE_BITS, STORED_BITS, frozen_bytes, quantised_names, trained_sizes
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind
from qlmm.model.parts.experts import expert_layers, fused_experts
from qlmm.model.parts.split import PartName, Parts
from qlmm.model.peft.adapter import Placement
from qlmm.model.token_losses import has_backbone

__all__ = ["Anatomy", "Forecast", "Group", "Load", "MemoryPart", "Optimizer", "patches"]

GIB, MIB = 1 << 30, 1 << 20
Group = Literal["libraries", "frozen weights", "trained weights", "activations", "logits", "device"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]

# Of a process that has imported torch, transformers, TRL, PEFT and bitsandbytes, and what the C library keeps of freed
# memory: benchmarks/results/forecast-cpu.json.
LIBRARIES, HEAP = round(0.52 * GIB), round(0.38 * GIB)
# What CUDA itself takes, and what cuBLAS works in: measured beside the allocator's figures on an H100.
CUDA_CONTEXT, WORKSPACE = round(0.45 * GIB), 32 * MIB
FRAGMENTATION = 0.05
# Adam's two moments; those of a paged optimizer give way to the host's memory where the GPU's is full.
MOMENTS: Mapping[Optimizer, int] = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 0}
# TRL's fused head: a tile is so many positions of so many entries of the vocabulary.
TILE_ROWS, TILE_COLUMNS = 4096, 32_768
# Bytes that TRL's loss takes for each entry of a tile besides the tile itself, where there is no Triton.
TILE_WORK = 29
# Without the fused head: logits, the same in fp32, and the gradients of both.
LOGIT_BYTES = 12
# How many patches along each side Qwen's towers make one token of.
MERGED = "spatial_merge_size"
NORM_BYTES = MASK_BYTES = MASTER_BYTES = GRADIENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Load:
    """What a step is given, and how it is computed.

    Attributes:
        rows: per forward pass.
        tokens: of every row, visual ones included: batches are as long as their longest row.
        supervised: how many of them have a loss.
        patches: what the tower sees of every row.
        every: which layers keep only their inputs for the backward pass: every n-th, all (1) or none (0).
    """

    rows: int
    tokens: int
    supervised: int
    patches: int
    every: int
    optimizer: Optimizer


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One part of what is in memory at a step's peak."""

    name: str
    group: Group
    bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is in memory at a step's peak, part by part."""

    parts: tuple[MemoryPart, ...]

    @property
    def total(self) -> int:
        """The peak, in bytes."""
        return sum(part.bytes for part in self.parts)

    @property
    def groups(self) -> dict[str, int]:
        """Bytes by group of parts."""
        found = Counter[str]()
        for part in self.parts:
            found[part.group] += part.bytes
        return dict(found)


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of one part, all counted together, per token.

    Attributes:
        count: how many there are.
        width: of what goes from one to the next.
        saved: bytes that all of them keep for the backward pass.
        wide: how many of these are of the wide layers in between, whose gradients are as large.
    """

    count: int
    width: int
    saved: int
    wide: int

    def kept(self, tokens: int, every: int, item: int) -> tuple[int, int, int]:
        """Bytes of kept inputs, of layers that keep everything, and of the one whose backward pass is under way."""
        checkpointed = self.count // every if every else 0
        inputs = checkpointed * tokens * self.width * item
        whole = (self.count - checkpointed) * tokens * self.saved // self.count
        passing = tokens * (self.wide // self.count + self.width * item)
        return inputs, whole, passing + (tokens * self.saved // self.count if checkpointed else 0)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Everything about a model, its adapter and its precision that a forecast needs.

    Attributes:
        frozen: bytes of the base, by part and storage.
        trained: weights that are trained.
        largest: weights of the largest quantised layer, which is restored twice at a time.
        language: the language model's layers.
        tower: the tower's, where it is trained.
        connector: bytes that a trained connector keeps per patch.
        vocabulary: entries of the output head.
        fused: whether TRL's fused head can be used.
        reference: whether a frozen copy of what is trained stands beside the model.
    """

    precision: Precision
    quantize: QuantKind
    frozen: dict[PartName, dict[str, int]]
    trained: int
    largest: int
    language: Layers
    tower: Layers | None
    connector: int
    vocabulary: int
    fused: bool
    reference: bool

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        parts: Parts,
        placement: Placement,
        precision: Precision,
        quantize: QuantKind,
        *,
        dropout: bool,
        reference: bool = False,
    ) -> Anatomy:
        """The anatomy of a model on the meta device; ``dropout`` is LoRA's."""
        text, item = model.config.get_text_config(), precision.compute.itemsize
        names = quantised_names(model, parts, quantize)
        trains_tower = "vision" in placement.asked

        def layers(part: PartName, width: int | None) -> Layers:
            return _layers(model, placement, part, item=item, dropout=dropout, width=width)

        return cls(
            precision=precision,
            quantize=quantize,
            frozen=frozen_bytes(model, parts, precision, quantize),
            trained=sum(trained_sizes(model, placement)),
            largest=max((model.get_parameter(name).numel() for name in names), default=0),
            language=layers("language", text.hidden_size),
            tower=layers("vision", None) if trains_tower else None,
            connector=_connector(model, placement, item) if "connector" in placement.asked else 0,
            vocabulary=text.vocab_size,
            fused=has_backbone(model),
            reference=reference,
        )

    def forecast(self, load: Load) -> Forecast:
        """What is in memory at the peak of a step: in the backward pass of a layer, or of the output head."""
        always = [*self._frozen(), *self._trained(load)]
        kept, layer = self._activations(load)
        logits = self._logits(load)
        restored = 2 * self.largest * self._item
        layers = [MemoryPart("one layer's backward pass", "activations", layer)]
        layers += [MemoryPart("restored weights", "activations", restored)] if restored else []
        head = [MemoryPart("logits", "logits", logits)]
        found = [*always, *kept, *(layers if layer + restored >= logits else head)]
        return Forecast((*self._libraries(), *found, *self._device(sum(part.bytes for part in found))))

    @property
    def _item(self) -> int:
        return self.precision.compute.itemsize

    def _frozen(self) -> Iterator[MemoryPart]:
        for part, stored in self.frozen.items():
            for storage, size in stored.items():
                codes = round(size * CODE_BITS[storage] / STORED_BITS[storage]) if storage in CODE_BITS else size
                if codes:
                    yield MemoryPart(f"{part}, {storage}", "frozen weights", codes)
                if size > codes:
                    yield MemoryPart(f"{part}, constants of {storage}", "frozen weights", size - codes)

    def _trained(self, load: Load) -> Iterator[MemoryPart]:
        sizes = {
            "weights, fp32": MASTER_BYTES,
            "gradients, fp32": GRADIENT_BYTES,
            f"moments of {load.optimizer}": MOMENTS[load.optimizer],
            f"copies, {self.precision.name}": self._item if self._item < MASTER_BYTES else 0,
            "reference": MASTER_BYTES if self.reference else 0,
        }
        yield from (MemoryPart(name, "trained weights", self.trained * size) for name, size in sizes.items() if size)

    def _activations(self, load: Load) -> tuple[Sequence[MemoryPart], int]:
        """What the layers keep until their backward pass, and the bytes of the largest that is under way."""
        inputs, whole, passing = self.language.kept(load.rows * load.tokens, load.every, self._item)
        sizes = {"layers' inputs": inputs, "layers kept whole": whole}
        if self.tower is not None:
            *tower, tower_passing = self.tower.kept(load.rows * load.patches, load.every, self._item)
            sizes["vision tower"], passing = sum(tower), max(passing, tower_passing)
        sizes["connector"] = self.connector * load.rows * load.patches
        return [MemoryPart(name, "activations", size) for name, size in sizes.items() if size], passing

    def _logits(self, load: Load) -> int:
        """Bytes of the output head's backward pass."""
        if not self.fused:
            return load.rows * load.supervised * self.vocabulary * LOGIT_BYTES
        width, cuda = self.language.width, self.precision.device == "cuda"
        positions = load.rows * load.supervised
        # Without Triton, pages of a tile that no entry of the vocabulary reaches stay free.
        columns = TILE_COLUMNS if cuda else min(self.vocabulary, TILE_COLUMNS)
        entry = 2 * self._item if cuda else self._item + TILE_WORK
        return min(positions, TILE_ROWS) * columns * entry + positions * width * GRADIENT_BYTES

    def _libraries(self) -> Sequence[MemoryPart]:
        if self.precision.device == "cuda":
            return []
        sizes = {"imported": LIBRARIES, "freed memory that is kept": HEAP}
        return [MemoryPart(name, "libraries", size) for name, size in sizes.items()]

    def _device(self, used: int) -> Sequence[MemoryPart]:
        if self.precision.device == "cpu":
            return []
        sizes = {
            "cuBLAS workspace": WORKSPACE,
            "fragmentation": round((used + WORKSPACE) * FRAGMENTATION),
            "CUDA context": CUDA_CONTEXT,
        }
        return [MemoryPart(name, "device", size) for name, size in sizes.items()]


def _layers(
    model: PreTrainedModel, placement: Placement, part: PartName, *, item: int, dropout: bool, width: int | None
) -> Layers:
    """The layers of a part: what each linear layer, norm and LoRA pair keeps for the backward pass, per token."""
    parts = placement.parts
    modules = [
        (name, module)
        for name, module in model.named_modules()
        if any(name.startswith(f"{owner}.") for owner in parts.modules(part)) and _owner(parts, name, module) == part
    ]
    linear: dict[str, Any] = {name: module for name, module in modules if isinstance(module, nn.Linear)}
    for name in expert_layers(list(linear)):
        del linear[name]
    sides = [(int(one.in_features), int(one.out_features)) for one in linear.values()]
    if width is None:
        width = Counter(out for _, out in sides).most_common(1)[0][0] if sides else 1
    norms = sum(_is_norm(module) for _, module in modules)
    count = sum(isinstance(module, GradientCheckpointingLayer) for _, module in modules)
    narrow, wide = _linear_bytes(sides, width, item)
    wide += _expert_bytes(model, parts, width, item) if part == "language" else 0
    adapted = [name for name in placement.lora if placement.parts.of(name) == part]
    inputs = _adapted_bytes(model, adapted, item, dropout=dropout)
    whole = sum(into for into, _ in sides) * item if any(parts.of(name) == part for name in placement.whole) else 0
    saved = norms * width * NORM_BYTES + narrow + wide + inputs + whole
    return Layers(max(1, count or model.config.get_text_config().num_hidden_layers), width, saved, wide)


def _adapted_bytes(model: PreTrainedModel, names: Sequence[str], item: int, *, dropout: bool) -> int:
    """Bytes per token that LoRA keeps of its inputs: after dropout or a cast, each layer has its own.

    Without, layers beside one another read the same tensor.
    """
    layers: list[tuple[str, Any]] = [(name.rpartition(".")[0], model.get_submodule(name)) for name in names]
    widths = [(beside, int(layer.in_features)) for beside, layer in layers]
    if item == MASTER_BYTES and not dropout:
        widths = list(set(widths))
    return sum(width for _, width in widths) * (item + (MASK_BYTES if dropout else 0))


def _owner(parts: Parts, name: str, module: nn.Module) -> PartName | None:
    """The part of a module's own parameters."""
    own = next((f"{name}.{child}" for child, _ in module.named_parameters()), None)
    return parts.of(own) if own is not None else None


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: a leaf with vectors alone, of which it keeps its input in fp32."""
    own = list(module.parameters())
    return bool(own) and not list(module.children()) and all(one.dim() == 1 for one in own)


def _linear_bytes(sides: Sequence[tuple[int, int]], width: int, item: int) -> tuple[int, int]:
    """Bytes per token that are kept of linear layers' results: of attention, and of the wide layers in between.

    The last layer of a block is added to what went in, and its result is not kept. Where two wide layers are multiplied
    (SwiGLU), the activation of one is kept too.
    """
    inner = max((into for into, out in sides if out == width), default=0)
    last = sum((into, out) == (inner, width) for into, out in sides) if inner > width else 0
    wide = sum(out for _, out in sides if inner > width and out >= inner)
    gated = inner * last if wide >= 2 * inner * last else 0
    between = [(into, out) for into, out in sides if out < max(inner, width + 1) and (into, out) != (inner, width)]
    narrow = sum(into if out == width else out for into, out in between)
    return narrow * item, (wide + gated) * item


def _expert_bytes(model: PreTrainedModel, parts: Parts, width: int, item: int) -> int:
    """Bytes per token that are kept of experts: a token passes a few of them."""
    text = model.config.get_text_config().to_dict()
    chosen = _first(text, ("num_experts_per_tok", "num_selected_experts", "top_k"), 2)
    fused = [model.get_parameter(name).shape for name in fused_experts(model, parts)]
    found = sum(int(shape.numel()) // int(shape[0]) for shape in fused)
    listed = expert_layers([name for name, module in model.named_modules() if isinstance(module, nn.Linear)])
    weights = sum(int(model.get_parameter(f"{name}.weight").numel()) for name in listed)
    found += weights // _first(text, ("num_local_experts", "num_experts", "n_routed_experts"), 8)
    return int(chosen * found // width * item)


def _first(settings: Mapping[str, object], names: Sequence[str], default: int) -> int:
    values = (settings.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), default)


def _connector(model: PreTrainedModel, placement: Placement, item: int) -> int:
    """Bytes per patch that a trained connector keeps: of each linear layer what goes in and what comes out."""
    modules = [model.get_submodule(name) for name in (*placement.whole, *placement.lora)]
    linear: list[Any] = [
        one
        for name, module in zip((*placement.whole, *placement.lora), modules, strict=True)
        if placement.parts.of(name) == "connector"
        for one in module.modules()
        if isinstance(one, nn.Linear)
    ]
    return sum(int(one.in_features) + int(one.out_features) for one in linear) * item


def patches(model: PreTrainedModel, pictures: int, visual: int) -> int:
    """How many patches the tower makes of a row, at least: of so many pictures, which become so many tokens."""
    vision = model.config.to_dict().get("vision_config") or {}
    side, cut, merged = (
        _first(vision, (name,), default) for name, default in (("image_size", 0), ("patch_size", 0), (MERGED, 1))
    )
    return max(pictures * (side // cut) ** 2 if cut else 0, visual * merged**2)
