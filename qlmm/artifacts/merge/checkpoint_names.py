"""From the names in a checkpoint's files to the names of a model's tensors.

transformers renames and regroups tensors while it loads them. Its own rules are asked here, so that a merged checkpoint
keeps the names of its base. Tensors that are put together while loading (experts kept one by one) are merged together
and taken apart again by transformers' own reverse rules; where those do not lead back, the checkpoint is refused.

Usage: ``groups = Keys(meta_model).groups(header(path))``
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, WeightConverter

from qlmm.artifacts.safetensors_stream import Reader, Stored
from qlmm.compat.transformers_models import (
    WeightRenaming,
    apply_renamings,
    dot_natural_key,
    get_model_conversion_mapping,
    rename_source_key,
)
from qlmm.core.errors import ModelError

__all__ = ["Group", "Keys"]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Tensors of files that become tensors of a model together; nearly always one and one.

    Attributes:
        sources: the tensors in the files, in the order transformers takes them.
        targets: shapes of the model's tensors as the files have them, by name; none where the model has no such tensor.
        join: puts the sources together; None where one is only renamed.
        back: takes the model's tensors apart again, by the files' names.
    """

    sources: tuple[Stored, ...]
    targets: Mapping[str, tuple[int, ...]]
    join: Callable[[Sequence[Tensor]], dict[str, Tensor]] | None = None
    back: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None

    def read(self, reader: Reader) -> dict[str, Tensor]:
        """The model's tensors, by name."""
        tensors = [reader.read(one) for one in self.sources]
        return self.join(tensors) if self.join is not None else dict(zip(self.targets, tensors, strict=True))


class Keys:
    """The rules by which a class reads checkpoints."""

    def __init__(self, model: PreTrainedModel) -> None:
        rules = get_model_conversion_mapping(model)
        self._model = model
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._by_pattern = {pattern: rule for rule in self._converters for pattern in rule.source_patterns}
        self._state = model.state_dict()

    def resolve(self, key: str) -> tuple[str, str | None]:
        """The model's name for a file's tensor, and the pattern of the converter that takes it, as transformers."""
        prefix = self._model.base_model_prefix
        name, pattern = rename_source_key(key, self._renamings, self._converters, prefix, self._state)
        if name not in self._state and key in self._state:
            name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=self._state)
        return name, pattern

    def groups(self, stored: Sequence[Stored]) -> list[Group]:
        """Everything in the files, in their order; what the model has no tensor for has no target."""
        gathered: dict[str, list[tuple[Stored, str]]] = defaultdict(list)
        plain: list[Group] = []
        for one in stored:
            name, pattern = self.resolve(one.key)
            if name not in self._state:
                plain.append(Group((one,), {}))
            elif pattern is None:
                plain.append(Group((one,), {name: one.shape}))
            else:
                gathered[name].append((one, pattern))
        return plain + [self._joined(name, members) for name, members in gathered.items()]

    def _joined(self, name: str, members: list[tuple[Stored, str]]) -> Group:
        ordered = sorted(members, key=lambda member: dot_natural_key(member[0].key))
        sources, converter = tuple(one for one, _ in ordered), self._by_pattern[ordered[0][1]]

        def join(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
            own = copy.deepcopy(converter)
            for (one, pattern), tensor in zip(ordered, tensors, strict=True):
                own.add_tensor(name, one.key, pattern, tensor)
            return _single(own.convert(name, model=self._model, config=self._model.config))

        def back(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            reverse = converter.reverse_transform()
            patterns = {own: reverse.rename_source_key(own) for own in tensors}
            for own, (renamed, pattern) in patterns.items():
                reverse.add_tensor(renamed, own, pattern or "", tensors[own])
            first, _ = next(iter(patterns.values()))
            made = _single(reverse.convert(first, model=self._model, config=self._model.config))
            # Files' names once renamed and not yet converted, which is where reverse conversion leads to.
            keys = {self._bare(apply_renamings(one.key, self._renamings)): one.key for one in sources}
            return {keys[self._bare(one)]: value for one, value in made.items()}

        empty = [torch.empty(one.shape, dtype=one.dtype, device="meta") for one in sources]
        return Group(sources, {own: tuple(value.shape) for own, value in join(empty).items()}, join, back)

    def _bare(self, name: str) -> str:
        """The name without the prefix that transformers adds or takes away as needed."""
        return name.removeprefix(f"{self._model.base_model_prefix}.")

    def check_reads(self, name: str) -> None:
        """Refuse to write a tensor under the model's own name where transformers would take it for another.

        Raises:
            ModelError: A022 with its name.
        """
        if self.resolve(name) != (name, None):
            raise self._cannot(name)

    def check_leads_back(self, group: Group) -> None:
        """Refuse joined tensors that cannot be brought back to the form of the files.

        Raises:
            ModelError: A022 with the name of one.
        """
        empty = {name: torch.empty(shape, device="meta") for name, shape in group.targets.items()}
        try:
            found = {key: tuple(value.shape) for key, value in group.back(empty).items()} if group.back else {}
        except (KeyError, ValueError, RuntimeError):  # what reverse rules that do not fit end in
            found = {}
        if found != {one.key: one.shape for one in group.sources}:
            raise self._cannot(next(iter(group.targets)))

    def _cannot(self, name: str) -> ModelError:
        message = f"{type(self._model).__name__} keeps {name} in its files in a form that cannot be merged"
        help = "keep base and adapter apart: qlmm and PEFT load them together"
        return ModelError.one("A022", message, help=help)


def _single(made: Mapping[str, Tensor | list[Tensor]]) -> dict[str, Tensor]:
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
