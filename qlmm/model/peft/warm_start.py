"""Starting from an adapter: stage 2 takes over what stage 1 trained.

A part that stage 1 trained and this run leaves alone is carried along: it is not in the base, so that the new adapter
must hold it too, frozen, or it would load with the base's untrained weights.

Usage: ``earlier = Earlier.read(Path("runs/owl_pretrain/adapter"), parts); earlier.fill(model)``
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST
from qlmm.model.loading.identity import BaseIdentity
from qlmm.model.parts.split import PEFT_PREFIX, PartName, Parts
from qlmm.model.peft.adapter import Placement
from qlmm.recipe.schema import AdapterSection
from qlmm.recipe.zoo import start_folder

__all__ = ["Earlier"]

# What an adapter folder says of itself: PEFT's file, and qlmm's, which an adapter made elsewhere lacks.


@dataclass(frozen=True, slots=True)
class Earlier:
    """An adapter to start from: its file, the parts it holds whole, and whether it holds LoRA weights."""

    path: Path
    whole: frozenset[PartName]
    has_lora: bool

    @classmethod
    def read(cls, folder: Path, parts: Parts) -> Earlier:
        """Look at an adapter's tensor names; no weight is read.

        Raises:
            UsageError: Z001 when the zoo has no adapter of that name.
            ModelError: M050 when there is no adapter there, M051 when it holds parts this base lacks.
        """
        path = start_folder(folder) / ADAPTER_WEIGHTS
        if not path.is_file():
            raise ModelError.one(
                "M050",
                f"{folder} holds no {ADAPTER_WEIGHTS}",
                help="name the adapter folder of a finished run, such as runs/owl_pretrain/adapter",
                key="adapter.start_from",
            )
        names = list(_shapes(path))
        lora = [name for name in names if ".lora_" in name]
        try:
            whole = {parts.of(name) for name in names if ".lora_" not in name}
        except KeyError as error:
            raise ModelError.one(
                "M051",
                f"{folder} was trained on another base; this one has no {error.args[0]}",
                help="name an adapter that was trained on this recipe's base, or leave adapter.start_from out",
                key="adapter.start_from",
            ) from error
        return cls(path, frozenset(whole), bool(lora))

    def check_base(self, present: BaseIdentity) -> None:
        """Compare the base that the adapter names with this run's; weights of one shape can be of two models.

        Args:
            present: of this run's base.

        Raises:
            ModelError: M053 with both names. A folder may be a copy of a model on the Hub: its configuration decides.
        """
        stated = _read(self.path.with_name(MANIFEST)).get("base")
        if stated is None:
            return
        try:
            recorded = BaseIdentity.model_validate(stated)
        except ValidationError as error:
            raise _damaged(self.path.with_name(MANIFEST), "it does not say what the base is") from error
        for one in recorded.differs(present):
            then, now = (part.pinned if part is not None else "none" for part in (one.recorded, one.present))
            raise ModelError.one(
                "M053",
                f"{self.path.parent} was trained on {then}, and this run's {one.role} is {now}",
                help=f"use {then}, or leave adapter.start_from out",
                key="adapter.start_from",
            )

    def check_scale(self, section: AdapterSection) -> None:
        """Compare how LoRA is scaled: with another scale the adapter would be another one from the first step on.

        Raises:
            ModelError: M054 with both values.
        """
        if not self.has_lora:
            return
        config = _read(self.path.with_name(ADAPTER_CONFIG))
        asked = {
            "lora_alpha": section.alpha,
            "use_rslora": section.variant == "rslora",
            "use_dora": section.variant == "dora",
        }
        for name, value in asked.items():
            if config.get(name, value) != value:
                raise ModelError.one(
                    "M054",
                    f"{self.path.parent} has {name} {config[name]}, this recipe {value}",
                    help="take over adapter.alpha and adapter.variant from that adapter's recipe",
                    key="adapter.start_from",
                )

    def check_fits(self, model: PreTrainedModel, parts: Parts, placement: Placement) -> None:
        """Compare names and shapes with a model without weights, before anything is written or loaded.

        Raises:
            ModelError: M052 with the first tensor that has no place, another shape, or is missing.
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
                raise _does_not_fit(self.path, f"{name} is {_said(whole.get(name))}, not {_said(expected.get(name))}")
        adapted = {*placement.lora, *(name.rpartition(".")[0] for name in placement.experts)}
        for name, shape in found.items():
            layer, _, kind = name.removeprefix(PEFT_PREFIX).partition(".lora_")
            if kind and layer not in adapted:
                raise _does_not_fit(self.path, f"it holds LoRA for {layer}, which this recipe does not adapt")
            if kind.startswith("A.") and shape[0] != placement.rank:
                raise _does_not_fit(self.path, f"its LoRA has rank {shape[0]}, not {placement.rank}")

    def fill(self, model: PeftModel) -> None:
        """Put the adapter's weights into a freshly attached one.

        Raises:
            ModelError: M052 when names or shapes do not fit, with the first that does not.
        """
        state = load_file(str(self.path))
        try:
            result = set_peft_model_state_dict(model, state)
        except RuntimeError as error:
            raise _does_not_fit(self.path, str(error).splitlines()[-1].strip()) from error
        if result.unexpected_keys:
            raise _does_not_fit(self.path, f"there is no place for {result.unexpected_keys[0]}")


def _read(path: Path) -> dict[str, Any]:
    """A file of the adapter's folder, empty where there is none.

    Raises:
        ModelError: M050 when it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no object")
    return found


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors; no weight is read.

    Raises:
        ModelError: M050 when the file is cut short or no safetensors file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError.one(
        "M050",
        f"{path} is damaged: {why}",
        help="fetch the adapter again, or take it from the run directory it was made in",
        key="adapter.start_from",
    )


def _said(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))


def _does_not_fit(path: Path, why: str) -> ModelError:
    return ModelError.one(
        "M052",
        f"{path} does not fit this recipe: {why}",
        help="use the base of that adapter, and, where it holds LoRA weights, its adapter.r and adapter.targets",
        key="adapter.start_from",
    )
