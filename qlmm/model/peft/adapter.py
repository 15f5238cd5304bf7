"""What is trained: LoRA anchored to its part, whole modules through PEFT's `modules_to_save`.

`all-linear` or a suffix such as `q_proj` would also match a CLIP tower, so targets are resolved to full names inside
the part they are meant for, and PEFT gets one anchored pattern. A connector trained whole goes through
`modules_to_save`: a module trained by plain `requires_grad` is missing from the adapter and moves the adapter-disabled
reference. A parameter in no module of the connector is trained in place and stored under its own name, which plain PEFT
loads too.

Usage: ``wrapped = attach(model, place(model, split(model), recipe.adapter), recipe.adapter, seed=0)``
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoftQConfig, LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.model.numerics.quantization import QuantKind
from qlmm.model.parts.split import PEFT_PREFIX, PartName, Parts
from qlmm.model.peft.targets import expert_targets, language_targets, linear_targets, pattern, unread, whole_modules
from qlmm.recipe.schema import AdapterSection

__all__ = [
    "Placement",
    "attach",
    "check_variant",
    "fill_bare",
    "place",
    "rehearse",
    "save_adapter",
    "to_fp32",
]

ANOTHER = "choose another base; docs/families.md lists the classes that work"

# Initialisations that decompose the base weight, which PEFT cannot read once it is quantised.
_NEEDS_PLAIN_WEIGHTS = {"pissa", "olora", "loftq"}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the adapter goes.

    Attributes:
        lora: full names of the layers that get LoRA.
        experts: full names of fused expert weights that get LoRA.
        endings: how many of both end in each name.
        pattern: the layers as one regular expression, as PEFT stores it.
        whole: modules trained in full.
        carried: modules that an earlier adapter trained and this run only passes on.
        bare: parameters without a module that are stored with the adapter, trained or carried.
        trains_bare: whether they are trained, in place.
        unread: parameters inside `whole` that no output depends on; they stay as they are.
        asked: the parts the recipe asks to train, which a run promises.
        rank: of LoRA.
    """

    parts: Parts
    lora: tuple[str, ...]
    experts: tuple[str, ...]
    endings: dict[str, int]
    pattern: str
    whole: tuple[str, ...]
    carried: tuple[str, ...]
    bare: tuple[str, ...]
    trains_bare: bool
    unread: frozenset[str]
    asked: frozenset[PartName]
    rank: int


def place(
    model: PreTrainedModel,
    parts: Parts,
    section: AdapterSection,
    *,
    earlier: frozenset[PartName] = frozenset(),
    keep_bare: bool = False,
) -> Placement:
    """Resolve a recipe's adapter section on a model (the meta device is enough).

    ``earlier`` are the parts trained whole in the adapter this run starts from. With ``keep_bare`` bare parameters stay
    as they are: they do not switch with the adapter, as a reference must.

    Raises:
        ModelError: M030 when a target matches no linear layer; M034 when experts are asked for that are not there, or
            with dropout; M036 when LoRA is asked for in a part of `earlier`; M037 to M039 when a part cannot be trained
            as asked.
    """
    choices: dict[PartName, str] = {"connector": section.connector, "vision": section.vision}
    asked = {part for part, choice in choices.items() if choice != "frozen"}
    _check_parts(model, parts, asked)
    full = [part for part, choice in choices.items() if choice == "full"]
    by_part: dict[PartName, list[str]] = {
        part: linear_targets(model, parts, part) for part, choice in choices.items() if choice == "lora"
    }
    experts: tuple[str, ...] = ()
    if section.language == "lora":
        by_part["language"] = language_targets(model, parts, section.targets)
        experts = expert_targets(model, parts, section)
        asked.add("language")
    if both := earlier & by_part.keys():
        part = min(both)
        message = f"the {part} was trained whole in that adapter, which LoRA in the {part} cannot continue"
        help = f"set adapter.{part}=full to go on, or adapter.{part}=frozen to carry it along"
        raise ModelError.one("M036", message, help=help, key="adapter.start_from")
    wholly = {part: whole_modules(model, parts, part) for part in full}
    trains_bare = "connector" in full and not keep_bare
    for part in asked - {"language"}:
        found = wholly[part] or (part == "connector" and trains_bare and parts.bare) if part in full else by_part[part]
        if not found:
            raise _untrainable(model, part, choices[part])
    carried = sorted(earlier - set(full))
    names = [name for part in by_part.values() for name in part]
    whole = tuple(name for part in wholly.values() for name in part)
    return Placement(
        parts=parts,
        lora=tuple(names),
        experts=experts,
        endings=dict(sorted(Counter(name.rsplit(".", 1)[-1] for name in (*names, *experts)).items())),
        pattern=pattern(model, names),
        whole=whole,
        carried=tuple(name for part in carried for name in whole_modules(model, parts, part)),
        bare=parts.bare if "connector" in {*full, *carried} else (),
        trains_bare=trains_bare,
        unread=unread(model, whole),
        asked=frozenset(asked),
        rank=section.r,
    )


def _check_parts(model: PreTrainedModel, parts: Parts, asked: set[PartName]) -> None:
    """Refuse to train a part that the model lacks, or that passes no gradient."""
    kind = type(model).__name__
    for part in sorted(asked):
        if not parts.has(part):
            help = f"set adapter.{part}=frozen, or choose another base"
            raise ModelError.one("M039", f"{kind} has no {part} of its own to train", help=help, key=f"adapter.{part}")
    if "vision" in asked and parts.discrete:
        message = f"the tower of {kind} turns pictures into tokens, which no gradient passes"
        raise ModelError.one("M037", message, help="set adapter.vision=frozen", key="adapter.vision")


def _untrainable(model: PreTrainedModel, part: PartName, choice: str) -> ModelError:
    """The error for a part that cannot be trained in the way that the recipe asks for, with the ways that are left."""
    if choice == "lora":
        why, ways = "has no linear layer that LoRA could go into", f"adapter.{part}=full or adapter.{part}=frozen"
    else:
        why, ways = "is a bare parameter, which a reference cannot stand beside", f"adapter.{part}=frozen"
    message = f"the {part} of {type(model).__name__} {why}"
    return ModelError.one("M039", message, help=f"set {ways}", key=f"adapter.{part}")


def check_variant(section: AdapterSection, quantize: QuantKind) -> None:
    """Refuse (M032) an initialisation that PEFT cannot do on quantised layers."""
    if section.language == "lora" and section.variant in _NEEDS_PLAIN_WEIGHTS and quantize != "none":
        message = f"{section.variant} decomposes the base weights, which PEFT cannot do on {quantize} ones"
        help = "set base.quantize=none, or use plain, rslora or dora, which work on quantised layers"
        raise ModelError.one("M032", message, help=help, key="adapter.variant")


def lora_config(placement: Placement, section: AdapterSection) -> LoraConfig:
    """PEFT's configuration for a placement; PEFT's own dummy target stands for "no layer"."""
    init: dict[str, Any] = {}
    if section.variant in ("pissa", "olora"):
        init["init_lora_weights"] = section.variant
    elif section.variant == "loftq":
        init |= {"init_lora_weights": "loftq", "loftq_config": LoftQConfig(loftq_bits=4)}
    return LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        use_rslora=section.variant == "rslora",
        use_dora=section.variant == "dora",
        target_modules=placement.pattern,
        target_parameters=list(placement.experts) or None,
        modules_to_save=[*placement.whole, *placement.carried] or None,
        task_type="CAUSAL_LM",
        **init,
    )


def attach(model: PreTrainedModel, placement: Placement, section: AdapterSection, *, seed: int) -> PeftModel:
    """Wrap the model; only what the placement names is trainable, and all of that in fp32.

    LoRA's random half is drawn from `seed`, so that an untouched adapter can be rebuilt bit for bit. Raises M033 when
    PEFT adapted other layers than the placement has.
    """
    torch.manual_seed(seed)
    try:
        wrapped = get_peft_model(model, lora_config(placement, section))
    except (ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError.one("M033", f"PEFT cannot adapt {type(model).__name__}: {reason}", help=ANOTHER) from error
    _check_adapted(wrapped, placement)
    frozen = [f"{PEFT_PREFIX}{module}." for module in placement.carried]
    trained = {f"{PEFT_PREFIX}{name}" for name in placement.bare if placement.trains_bare}
    for name, parameter in wrapped.named_parameters():
        own = name.removeprefix(PEFT_PREFIX).replace(".modules_to_save.default.", ".")
        if own in placement.unread or any(name.startswith(module) for module in frozen):
            parameter.requires_grad_(False)
        elif name in trained:
            parameter.requires_grad_(True)
    to_fp32(wrapped)
    return wrapped


def rehearse(model: PreTrainedModel, placement: Placement, section: AdapterSection) -> PeftModel:
    """A copy of a model on the meta device with its adapter: what PEFT makes of it, raising as `attach`."""
    # Initialisations that decompose weights change no name and no shape, and have nothing to decompose here.
    plain = section if section.variant == "dora" else section.model_copy(update={"variant": "plain"})
    with torch.device("meta"):
        return attach(copy.deepcopy(model), placement, plain, seed=0)


def _check_adapted(wrapped: PeftModel, placement: Placement) -> None:
    names = [name.removeprefix(PEFT_PREFIX) for name, _ in wrapped.named_parameters()]
    adapted = {name.rsplit(".lora_A", 1)[0] for name in names if ".lora_A." in name and ".base_layer." not in name}
    adapted -= {name.rpartition(".")[0] for name in placement.experts}
    copied = {name.split(".modules_to_save.", 1)[0] for name in names if ".modules_to_save." in name}
    unplanned = sorted((adapted ^ set(placement.lora)) | (copied ^ {*placement.whole, *placement.carried}))
    if unplanned:
        message = f"PEFT adapted other layers than planned, for example {', '.join(unplanned[:5])}"
        raise ModelError.one("M033", message, help=ANOTHER)


def to_fp32(model: torch.nn.Module) -> None:
    """Keep every trainable weight in fp32: at a rate of 2e-5 most bf16 weights would not move at all."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def save_adapter(model: PeftModel, folder: Path, bare: tuple[str, ...]) -> None:
    """Write the adapter in PEFT's layout, with the parameters that PEFT itself does not know it should store."""
    # The embedding check would ask the Hub about the base's vocabulary; no embedding is ever trained here.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    add_bare(model, folder, bare)


def add_bare(model: PeftModel, folder: Path, bare: tuple[str, ...]) -> None:
    """Add the bare parameters to an adapter that PEFT has written."""
    if bare:
        values = dict(model.named_parameters())
        names = [f"{PEFT_PREFIX}{name}" for name in bare]
        own = {name: values[name].detach().cpu().contiguous() for name in names}
        path = str(folder / ADAPTER_WEIGHTS)
        save_file({**load_file(path), **own}, path, metadata={"format": "pt"})


def fill_bare(model: PeftModel, folder: Path) -> tuple[str, ...]:
    """Put stored bare parameters back in the precision they were trained in; PEFT rounds them to the base's.

    Returns their names in the wrapped model.
    """
    values = dict(model.named_parameters())
    with safe_open(str(folder / ADAPTER_WEIGHTS), framework="pt") as file:
        # PEFT stores everything else under names that the model does not have.
        bare = tuple(name for name in file.keys() if name in values)  # noqa: SIM118  no mapping
        for name in bare:
            values[name].data = file.get_tensor(name).to(values[name].device)
    return bare
