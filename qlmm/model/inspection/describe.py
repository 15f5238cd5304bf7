"""What qlmm would make of a model, from its configuration alone: parts, what is trained, what is saved, what it needs.

Everything comes from the blueprint by the same functions that plan a run, so that the two cannot disagree. Memory is
forecast for a GPU of the usual precision, on every machine.

Usage: ``shown = describe(recipe); shown.parts, shown.adapter.obstacles``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qlmm.core.errors import ModelError
from qlmm.model.inspection.forecast import Anatomy, Load, patches
from qlmm.model.inspection.memory import lora_sizes, trained_sizes
from qlmm.model.inspection.pictures import SIZES, PicturesShown, look
from qlmm.model.loading.base import Base, Blueprint
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind, check_experts
from qlmm.model.parts.experts import expert_layers, fused_experts, routers
from qlmm.model.parts.split import PART_NAMES, PartName, Parts
from qlmm.model.peft.adapter import Placement, check_variant, place
from qlmm.model.peft.targets import alike, linear_targets
from qlmm.model.peft.vllm_lora import refused_variant, trained_whole
from qlmm.recipe.schema import AdapterSection, Recipe, TrainingSection

__all__ = ["AdapterShown", "ExpertsShown", "LoraShown", "ModelShown", "PartShown", "describe"]

ROW_TOKENS = 1024
OWN, TOWER, BARE = "a module of its own", "inside the vision tower", "bare parameters"
CROSS = "cross-attention layers inside the decoder"


@dataclass(frozen=True, slots=True)
class PartShown:
    """One part of the model; a connector's bare parameters are in ``ModelShown.connector``.

    Attributes:
        stored: estimated bytes by storage, such as ``{"nf4": …, "bf16": …}``.
        trained: weights that would be trained for it, LoRA's included.
    """

    part: PartName
    modules: tuple[str, ...]
    parameters: int
    stored: dict[str, int]
    training: Literal["frozen", "LoRA", "whole"]
    trained: int


@dataclass(frozen=True, slots=True)
class LoraShown:
    """Where LoRA goes: how many layers and fused weights by part, by ending, and by name without layer numbers."""

    layers: dict[PartName, int]
    endings: dict[str, int]
    patterns: int
    pattern: str


@dataclass(frozen=True, slots=True)
class ExpertsShown:
    """The experts of a mixture of experts.

    Attributes:
        fused: whether those of a layer are one three-dimensional weight, which bitsandbytes cannot quantise.
        weights: how many such weights, or else linear layers, they are.
        share: of the language model's parameters, 0 to 1.
    """

    fused: bool
    weights: int
    share: float
    adapted: bool
    routers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterShown:
    """What would be saved: tensors of each kind, bytes of all in fp32, and why servers such as vLLM refuse it."""

    lora: int
    whole: int
    bare: int
    size: int
    obstacles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelShown:
    """Everything known of a model without its weights.

    Attributes:
        quantize: how the language model's linear layers would be stored; ``none`` where the recipe's wish is refused.
        refused: why that wish is refused.
        compute: precision of everything else.
        connector: its modules and bare parameters by where they are.
        memory: forecast of the bytes of training one row of ``row_tokens`` tokens, by group.
        pictures: None where the processor cannot be used, for the reason ``unseen``.
        start_from: the adapter that a run would start with, which is not looked at.
    """

    base: str
    kind: Literal["native", "assembled"]
    class_name: str
    model_type: str
    parameters: int
    encoder_decoder: bool
    quantize: QuantKind
    refused: str | None
    compute: str
    parts: tuple[PartShown, ...]
    connector: dict[str, tuple[str, ...]]
    lora: LoraShown
    experts: ExpertsShown | None
    adapter: AdapterShown
    row_tokens: int
    memory: dict[str, int]
    pictures: PicturesShown | None
    unseen: str | None
    start_from: str | None


def describe(recipe: Recipe, sizes: Sequence[tuple[int, int]] = ()) -> ModelShown:
    """What a run of the recipe would make of its base; its rows are not read.

    ``sizes`` are widths and heights, in pixels, of pictures to count tokens of; empty, three usual ones. A processor
    that cannot be used is explained in ``unseen``.

    Raises:
        ModelError: M003 and following for an impossible base, M030 and following for an adapter that does not fit it.
    """
    base = Base.resolve(recipe.base)
    shape = base.shape
    # A part that the base lacks is shown as such; a run would refuse to train it.
    lacking = {part: "frozen" for part in ("connector", "vision") if not shape.parts.has(part)}
    section = recipe.adapter.model_copy(update=lacking)
    quantize, refused = _storage(shape, recipe.base.quantize)
    check_variant(section, quantize)
    placement = place(shape.model, shape.parts, section)
    precision = _precision(recipe.training)
    anatomy = Anatomy.of(shape.model, shape.parts, placement, precision, quantize, dropout=recipe.adapter.dropout > 0)
    load = Load(
        rows=1,
        tokens=ROW_TOKENS,
        supervised=ROW_TOKENS,
        patches=patches(shape.model, pictures=1, visual=0),
        every=1 if recipe.training.gradient_checkpointing else 0,
        optimizer=recipe.training.optimizer,
    )
    pictures, unseen = look(base, recipe.data, sizes or SIZES)
    return ModelShown(
        base=base.name,
        kind=base.identity.kind,
        class_name=type(shape.model).__name__,
        model_type=shape.model.config.model_type,
        parameters=sum(parameter.numel() for parameter in shape.model.parameters()),
        encoder_decoder=base.answers_in_decoder,
        quantize=quantize,
        refused=refused,
        compute=precision.name,
        parts=tuple(_parts(shape, placement, anatomy)),
        connector=_connector(shape.parts),
        lora=_lora(placement),
        experts=_experts(shape, placement),
        adapter=_adapter(shape, placement, section),
        row_tokens=ROW_TOKENS,
        memory=anatomy.forecast(load).groups,
        pictures=pictures,
        unseen=unseen,
        start_from=recipe.adapter.start_from,
    )


def _storage(shape: Blueprint, wanted: QuantKind) -> tuple[QuantKind, str | None]:
    try:
        check_experts(shape.model, shape.parts, wanted)
    except ModelError as error:
        return "none", error.problems[0].message
    return wanted, None


def _precision(training: TrainingSection) -> Precision:
    """What the recipe names, else what a GPU gives, or the CPU where the recipe asks for it."""
    if training.precision != "auto":
        return Precision("cuda", training.precision)
    return Precision("cpu", "fp32") if training.device == "cpu" else Precision("cuda", "bf16")


def _parts(shape: Blueprint, placement: Placement, anatomy: Anatomy) -> Iterator[PartShown]:
    for part in PART_NAMES:
        if shape.parts.has(part):
            trained = sum(trained_sizes(shape.model, placement, part))
            adapted = any(shape.parts.of(name) == part for name in (*placement.lora, *placement.experts))
            yield PartShown(
                part=part,
                modules=shape.parts.modules(part),
                parameters=sum(_sizes(shape, part).values()),
                stored=anatomy.frozen[part],
                training="LoRA" if adapted else "whole" if trained else "frozen",
                trained=trained,
            )


def _sizes(shape: Blueprint, part: PartName) -> dict[str, int]:
    """Weights of each parameter of a part; tied weights are listed once."""
    return {name: p.numel() for name, p in shape.model.named_parameters() if shape.parts.of(name) == part}


def _connector(parts: Parts) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in parts.connector:
        place = TOWER if _in(name, parts.vision) else CROSS if _in(name, parts.language) else OWN
        found[place] = (*found.get(place, ()), name)
    return {**found, **({BARE: parts.bare} if parts.bare else {})}


def _in(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _lora(placement: Placement) -> LoraShown:
    names = (*placement.lora, *placement.experts)
    owners = [placement.parts.of(name) for name in names]
    return LoraShown(
        layers={part: owners.count(part) for part in PART_NAMES if part in owners},
        endings=placement.endings,
        patterns=len(alike(names)),
        pattern=placement.pattern,
    )


def _experts(shape: Blueprint, placement: Placement) -> ExpertsShown | None:
    fused = fused_experts(shape.model, shape.parts)
    listed = expert_layers(linear_targets(shape.model, shape.parts, "language"))
    if not fused and not listed:
        return None
    sizes = _sizes(shape, "language")
    weights = sum(sizes[name] for name in fused) + sum(sizes[f"{name}.weight"] for name in listed)
    return ExpertsShown(
        fused=bool(fused),
        weights=len(fused) or len(listed),
        share=weights / sum(sizes.values()),
        adapted=bool(placement.experts) or not set(listed).isdisjoint(placement.lora),
        routers=tuple(sorted(routers(shape.model, shape.parts))),
    )


def _adapter(shape: Blueprint, placement: Placement, section: AdapterSection) -> AdapterShown:
    model = shape.model
    whole = [value.numel() for name in placement.whole for value in model.get_submodule(name).state_dict().values()]
    bare = [model.get_parameter(name).numel() for name in placement.bare]
    layers: list[Any] = [model.get_submodule(name) for name in placement.lora]
    magnitudes = [int(layer.out_features) for layer in layers] if section.variant == "dora" else []
    weights = sum(lora_sizes(model, placement)) + sum(magnitudes) + sum(whole) + sum(bare)
    return AdapterShown(
        lora=2 * (len(placement.lora) + len(placement.experts)) + len(magnitudes),
        whole=len(whole),
        bare=len(bare),
        size=4 * weights,
        obstacles=tuple(_obstacles(placement, section)),
    )


def _obstacles(placement: Placement, section: AdapterSection) -> list[str]:
    found = []
    if placement.whole or placement.bare:
        what = "modules_to_save" if placement.whole else "bare parameters"
        found.append(f"{what}: set {' and '.join(f'adapter.{part}=lora' for part in trained_whole(section))}")
    if (variant := refused_variant(section)) is not None:
        found.append(f"{variant}: set adapter.variant=plain")
    return found
