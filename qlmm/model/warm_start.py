"""Starting from an adapter: stage 2 takes over what stage 1 trained.

A part that stage 1 trained and this run leaves alone is carried along: it is not in the base, so that the new adapter
must hold it too, frozen, or it would load with the base's untrained weights.

Usage: ``earlier = Earlier.read(Path("runs/owl_pretrain/adapter"), parts); earlier.fill(model)``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from qlmm.core.errors import ModelError
from qlmm.model.parts import PartName, Parts

__all__ = ["Earlier"]

WEIGHTS = "adapter_model.safetensors"


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
            ModelError: M050 when there is no adapter there, M051 when it holds parts this base lacks.
        """
        path = folder / WEIGHTS
        if not path.is_file():
            raise ModelError.one(
                "M050",
                f"adapter.start_from: {folder} holds no {WEIGHTS}",
                help="name the adapter folder of a finished run, such as runs/owl_pretrain/adapter",
            )
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
        lora = [name for name in names if ".lora_" in name]
        try:
            whole = {parts.of(name) for name in names if ".lora_" not in name}
        except KeyError as error:
            raise ModelError.one(
                "M051",
                f"adapter.start_from: {folder} was trained on another base; this one has no {error.args[0]}",
                help="name an adapter that was trained on this recipe's base, or leave adapter.start_from out",
            ) from error
        return cls(path, frozenset(whole), bool(lora))

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


def _does_not_fit(path: Path, why: str) -> ModelError:
    return ModelError.one(
        "M052",
        f"adapter.start_from: {path} does not fit this recipe: {why}",
        help="use the base of that adapter, and, where it holds LoRA weights, its adapter.r and adapter.targets",
    )
