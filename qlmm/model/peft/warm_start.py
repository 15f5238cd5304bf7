"""Starting from an adapter: stage 2 takes over what stage 1 trained.

A part that stage 1 trained and this run leaves alone is carried along, frozen: without it in the new adapter, the part
would load with the base's untrained weights.

Usage: ``earlier = Earlier.read(Path("runs/owl_pretrain/adapter"), parts); earlier.fill(model)``
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel, set_peft_model_state_dict
from pydantic import JsonValue, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST
from qlmm.core.files import file_sha256
from qlmm.core.json_files import read_object, refuse_code
from qlmm.model.loading.identity import BaseIdentity
from qlmm.model.numerics.finite import not_finite
from qlmm.model.parts.split import PEFT_PREFIX, PartName, Parts
from qlmm.model.peft.adapter import Placement
from qlmm.model.peft.targets import unread
from qlmm.recipe.schema import AdapterSection
from qlmm.recipe.zoo import start_folder

__all__ = ["Earlier"]


@dataclass(frozen=True, slots=True)
class Earlier:
    """An adapter to start from: its file, the parts trained whole in it, and whether it has LoRA weights."""

    path: Path
    whole: frozenset[PartName]
    has_lora: bool

    @classmethod
    def read(cls, folder: Path, parts: Parts) -> Earlier:
        """Look at an adapter's tensor names, and whether its weights are finite.

        Raises:
            UsageError: Z001 when the zoo has no adapter of that name.
            ModelError: M050 when there is no adapter there, M051 when it has parts that this base lacks.
        """
        path = start_folder(folder) / ADAPTER_WEIGHTS
        if not path.is_file():
            help = "name the adapter folder of a finished run, such as runs/owl_pretrain/adapter"
            raise _refused("M050", f"{folder} has no {ADAPTER_WEIGHTS}", help)
        names = list(_shapes(path))
        if wrong := not_finite(path.parent):
            raise _damaged(path, "; ".join(wrong[:3]))
        lora = [name for name in names if ".lora_" in name]
        try:
            whole = {parts.of(name) for name in names if ".lora_" not in name}
        except KeyError as error:
            message = f"{folder} was trained on another base; this one has no {error.args[0]}"
            help = "name an adapter that was trained on this recipe's base, or leave adapter.start_from out"
            raise _refused("M051", message, help) from error
        return cls(path, frozenset(whole), bool(lora))

    def check_base(self, present: BaseIdentity) -> None:
        """Refuse (M053) another base than this run's: weights of one shape can be of two models."""
        manifest = self.path.with_name(MANIFEST)
        stated = _read(manifest).get("base")
        if stated is None:
            return
        try:
            recorded = BaseIdentity.model_validate(stated)
        except ValidationError as error:
            raise _damaged(manifest, "it does not name the base") from error
        for one in recorded.differs(present):
            then, now = (part.pinned if part is not None else "none" for part in (one.recorded, one.present))
            message = f"{self.path.parent} was trained on {then}, and this run's {one.role} is {now}"
            raise _refused("M053", message, f"use {then}, or leave adapter.start_from out")

    def check_scale(self, section: AdapterSection) -> None:
        """Refuse (M054) another scale of LoRA: the adapter would be another one from the first step on."""
        if not self.has_lora:
            return
        config, variant = _read(self.path.with_name(ADAPTER_CONFIG)), section.variant
        asked = {"lora_alpha": section.alpha, "use_rslora": variant == "rslora", "use_dora": variant == "dora"}
        for name, value in asked.items():
            if config.get(name, value) != value:
                message = f"{self.path.parent} has {name} {config[name]}, this recipe {value}"
                raise _refused("M054", message, "take adapter.alpha and adapter.variant from that adapter's recipe")

    def check_fits(self, model: PreTrainedModel, parts: Parts, placement: Placement) -> None:
        """Compare names and shapes with a model without weights; raises M052 with the first tensor that differs.

        Raises M050 for an adapter that was changed since it was written, or has LoRA in fewer bits, or NaN.
        """
        found = _shapes(self.path)
        whole = {name: shape for name, shape in found.items() if ".lora_" not in name}
        expected = {
            f"{PEFT_PREFIX}{name}": tuple(value.shape)
            for name, value in model.state_dict().items()
            if parts.of(name) in self.whole
        }
        for name in sorted(expected.keys() | whole.keys()):
            if whole.get(name) != expected.get(name):
                raise _does_not_fit(self.path, f"{name} is {_words(whole.get(name))}, not {_words(expected.get(name))}")
        adapted = {*placement.lora, *(name.rpartition(".")[0] for name in placement.experts)}
        for name, shape in found.items():
            layer, _, kind = name.removeprefix(PEFT_PREFIX).partition(".lora_")
            if kind and layer not in adapted:
                raise _does_not_fit(self.path, f"it has LoRA for {layer}, which this recipe does not adapt")
            if kind.startswith("A.") and shape[0] != placement.rank:
                raise _does_not_fit(self.path, f"its LoRA has rank {shape[0]}, not {placement.rank}")
        if missing := self._missing_lora(found, parts, placement):
            raise _does_not_fit(self.path, f"{missing[0]} is missing")
        self._check_values(model, parts)

    def _missing_lora(self, found: Iterable[str], parts: Parts, placement: Placement) -> list[str]:
        """LoRA tensors of the layers that the recipe adapts, in the parts that have LoRA in the adapter."""
        have = {parts.of(name.partition(".lora_")[0]) for name in found if ".lora_" in name}
        layers = [layer for layer in placement.lora if parts.of(layer) in have]
        wanted = [f"{PEFT_PREFIX}{layer}.lora_{half}.weight" for layer in layers for half in "AB"]
        return [name for name in wanted if name not in found]

    def _check_values(self, model: PreTrainedModel, parts: Parts) -> None:
        """Refuse weights that were changed since the manifest was written, and trained ones in fewer bits."""
        manifest = _read(self.path.with_name(MANIFEST))
        stated, asked = _section(manifest, "files"), _section(_section(manifest, "recipe"), "adapter")
        if stated.get(ADAPTER_WEIGHTS) not in (None, file_sha256(self.path)):
            raise _damaged(self.path, f"it was changed since {MANIFEST} was written")
        full = [part for part in self.whole if asked.get(part) == "full"]
        passed_by = {name for part in full for name in unread(model, parts.modules(part))}
        trained = {
            f"{PEFT_PREFIX}{name}"
            for name, _ in model.named_parameters()
            if parts.of(name) in full and name not in passed_by
        }
        with safe_open(str(self.path), framework="pt") as file:
            names = [name for name in file.keys() if ".lora_" in name or name in trained]  # noqa: SIM118  no mapping
            short = [name for name in names if file.get_slice(name).get_dtype() != "F32"]
        if short:
            raise _damaged(self.path, f"{short[0]} is not in fp32")

    def fill(self, model: PeftModel) -> None:
        """Put the adapter's weights into a freshly attached one; raises M052 with the first that does not fit."""
        result = set_peft_model_state_dict(model, load_file(str(self.path)))
        if result.unexpected_keys:
            raise _does_not_fit(self.path, f"there is no place for {result.unexpected_keys[0]}")


def _read(path: Path) -> dict[str, JsonValue]:
    """A JSON file of the adapter's folder, empty where there is none."""
    if not path.is_file():
        return {}
    refuse_code(path)
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _section(found: dict[str, JsonValue], key: str) -> dict[str, JsonValue]:
    section = found.get(key)
    return section if isinstance(section, dict) else {}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))


def _refused(code: str, message: str, help: str) -> ModelError:
    return ModelError.one(code, message, help=help, key="adapter.start_from")


def _damaged(path: Path, why: str) -> ModelError:
    help = "fetch the adapter again, or take it from the run directory it was made in"
    return _refused("M050", f"{path} is damaged: {why}", help)


def _does_not_fit(path: Path, why: str) -> ModelError:
    help = "use the base of that adapter, and, where it has LoRA weights, its adapter.r and adapter.targets"
    return _refused("M052", f"{path} does not fit this recipe: {why}", help)
