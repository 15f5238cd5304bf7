"""What a model's weights were, and what training did to them: the material of the run proof.

Frozen tensors are hashed, packed 4-bit data and constants included; trained ones are copied to host memory in fp32.
They mean the start of a continued run too: a model built from the same recipe and seed has the same bits.

Usage: ``start = Start.of(model, parts); …; proofs = start.compare(model, grad_norms)``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import ProcessorMixin

from qlmm.compat.bitsandbytes_private import quant_state
from qlmm.model.parts.split import PART_NAMES, PartName, Parts
from qlmm.proof.records import PartProof

__all__ = ["Start", "base_digest", "digest", "frozen_tensors", "processor_digest", "tensors_digest"]


def frozen_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that training must not touch: frozen parameters, their quantisation constants, and buffers."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        yield name, parameter.data
        state = quant_state(parameter)
        if state is not None:
            yield from ((f"{name}.{key}", value) for key, value in state.as_dict(packed=True).items())
    persistent = model.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


def digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes; dtype and shape do not enter, since the name it is kept under fixes both."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def base_digest(model: nn.Module, *, bare: tuple[str, ...] = ()) -> str:
    """What `Start.base_sha256` was, for a model with the adapter read back, where nothing is trainable."""
    return _of_base({name: digest(tensor) for name, tensor in frozen_tensors(model) if not _of_adapter(name)}, bare)


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """One digest of named tensors."""
    return _of_lines({name: digest(tensor) for name, tensor in tensors.items()})


def processor_digest(processor: ProcessorMixin) -> str:
    """What a processor makes of rows: its settings, its chat template and its tokenizer."""
    facts = [processor.to_json_string(), str(processor.chat_template), processor.tokenizer.backend_tokenizer.to_str()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _of_adapter(name: str) -> bool:
    return ".lora_" in name or ".modules_to_save." in name


def _of_base(digests: Mapping[str, str], bare: tuple[str, ...]) -> str:
    return _of_lines({name: value for name, value in digests.items() if not _of_adapter(name) and name not in bare})


def _of_lines(digests: Mapping[str, str]) -> str:
    lines = "\n".join(f"{name} {value}" for name, value in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Start:
    """The weights a run started from.

    Attributes:
        parts: the base's parts.
        asked: parts that are to be trained.
        frozen: digests of all that must not change.
        trained: fp32 copies of all that is trained.
        bare: parameters of the base that the adapter has too, by their names in the model.
    """

    parts: Parts
    asked: frozenset[PartName]
    frozen: dict[str, str]
    trained: dict[str, torch.Tensor]
    bare: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, parts: Parts, asked: frozenset[PartName], bare: tuple[str, ...] = ()) -> Start:
        """Take the fingerprint of a model that is about to be trained; costs one pass over its weights."""
        frozen = {name: digest(tensor) for name, tensor in frozen_tensors(model)}
        trained = {
            name: parameter.detach().to("cpu", torch.float32, copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        return cls(parts, asked, frozen, trained, bare)

    @property
    def base_sha256(self) -> str:
        """One hash over the base's tensors: equal for every model built on the same base in the same form."""
        return _of_base(self.frozen, self.bare)

    def compare(self, model: nn.Module, grad_norms: Mapping[str, float]) -> tuple[PartProof, ...]:
        """What became of each part, given the largest gradient norm seen in each."""
        found = {name: digest(tensor) for name, tensor in frozen_tensors(model)}
        # A frozen tensor that appeared during the run counts as changed too.
        names = self.frozen.keys() | found.keys()
        changed = {self.parts.of(name) for name in names if self.frozen.get(name) != found.get(name)}
        values = dict(model.named_parameters())
        return tuple(
            self._part(part, values, identical=part not in changed, grad_norm=grad_norms.get(part, 0.0))
            for part in PART_NAMES
            if self.parts.has(part)
        )

    def _part(
        self, part: PartName, values: Mapping[str, nn.Parameter], *, identical: bool, grad_norm: float
    ) -> PartProof:
        moved_weights = total = moved_tensors = 0
        movement = 0.0
        trained = {name: start for name, start in self.trained.items() if self.parts.of(name) == part}
        for name, start in trained.items():
            step = (values[name].detach().to("cpu", torch.float32) - start).abs()
            moved = int(torch.count_nonzero(step))
            moved_weights += moved
            moved_tensors += moved > 0
            total += step.numel()
            movement += float(step.sum(dtype=torch.float64))
        return PartProof(
            part=part,
            trained_tensors=len(trained),
            trained_parameters=total,
            asked=part in self.asked,
            moved_share=moved_weights / total if total else 0.0,
            moved_tensors=moved_tensors,
            mean_movement=movement / total if total else 0.0,
            grad_norm_max=grad_norm,
            frozen_tensors=sum(self.parts.of(name) == part for name in self.frozen),
            frozen_identical=identical,
        )
