"""From the names in a checkpoint's files to the names of a model's tensors.

transformers renames and regroups tensors while it loads them. Its own rules are asked here, so that a merged checkpoint
keeps the names of its base. Tensors that are put together while loading (experts kept one by one) are merged together
and taken apart again by transformers' own reverse rules; where those do not lead back, the checkpoint is refused.

Usage: ``groups = Keys(meta_model).groups(header(path))``
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of files that become tensors of a model together; nearly always one and one.

    Attributes:
        sources: the tensors in the files, in the order transformers takes them.
        targets: shapes of the model's tensors as the files have them, by name; none where the model has no such tensor.
        patterns: for each source the pattern by which the converter knows it; none where it is only renamed.
        converter: what puts them together; None where it is only renamed.
    """

    sources: tuple[Stored, ...]
    targets: Mapping[str, tuple[int, ...]]
    patterns: tuple[str, ...] = ()
    converter: WeightConverter | None = None
    model: PreTrainedModel | None = None

    def read(self, reader: Reader) -> dict[str, Tensor]:
        """The model's tensors, by name."""
        tensors = [reader.read(one) for one in self.sources]
        return _convert(self, tensors) if self.converter is not None else dict(zip(self.targets, tensors, strict=True))


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
        group = Group(
            sources=tuple(one for one, _ in ordered),
            targets={name: ()},
            patterns=tuple(pattern for _, pattern in ordered),
            converter=self._by_pattern[ordered[0][1]],
            model=self._model,
        )
        made = _convert(group, [torch.empty(one.shape, dtype=one.dtype, device="meta") for one in group.sources])
        shapes = {target: tuple(value.shape) for target, value in made.items()}
        return Group(group.sources, shapes, group.patterns, group.converter, group.model)

    def check_reads(self, name: str) -> None:
        """Refuse to write a tensor under the model's own name where transformers would take it for another.

        Raises:
            ModelError: A022 with its name.
        """
        if self.resolve(name) != (name, None):
            raise self._cannot(name)

    def check_leads_back(self, group: Group) -> None:
        """Refuse a group whose tensors cannot be brought back to the form of the files.

        Raises:
            ModelError: A022 with the name of one.
        """
        wanted = {one.key: one.shape for one in group.sources}
        empty = {name: torch.empty(shape, device="meta") for name, shape in group.targets.items()}
        try:
            found = {key: tuple(value.shape) for key, value in self.back(group, empty).items()}
        except (KeyError, ValueError, RuntimeError):  # what reverse rules that do not fit end in
            found = {}
        if found != wanted:
            raise self._cannot(next(iter(group.targets)))

    def back(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A group's tensors of the model in the form of the files, by the files' names."""
        if group.converter is None:
            raise ValueError("nothing to convert")
        reverse = group.converter.reverse_transform()
        patterns = {name: reverse.rename_source_key(name) for name in tensors}
        for name, (renamed, pattern) in patterns.items():
            reverse.add_tensor(renamed, name, pattern or "", tensors[name])
        first, _ = next(iter(patterns.values()))
        made = reverse.convert(first, model=self._model, config=self._model.config)
        keys = {self._between(one.key): one.key for one in group.sources}
        return {keys[self._bare(name)]: _single(value) for name, value in made.items()}

    def _between(self, key: str) -> str:
        """A file's name once renamed and not yet converted: where reverse conversion leads to."""
        return self._bare(apply_renamings(key, self._renamings))

    def _bare(self, name: str) -> str:
        """The name without the prefix that transformers adds or takes away as needed."""
        return name.removeprefix(f"{self._model.base_model_prefix}.")

    def _cannot(self, name: str) -> ModelError:
        return ModelError.one(
            "A022",
            f"{type(self._model).__name__} keeps {name} in its files in a form that cannot be merged",
            help="keep base and adapter apart: qlmm and PEFT load them together",
        )


def _convert(group: Group, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """What transformers' own converter makes of a group's tensors."""
    if group.converter is None or group.model is None:
        raise ValueError("nothing to convert")
    converter = copy.deepcopy(group.converter)
    (first, *_) = group.targets
    for one, pattern, tensor in zip(group.sources, group.patterns, tensors, strict=True):
        converter.add_tensor(first, one.key, pattern, tensor)
    made = converter.convert(first, model=group.model, config=group.model.config)
    return {name: _single(value) for name, value in made.items()}


def _single(value: Tensor | list[Tensor]) -> Tensor:
    return value[0] if isinstance(value, list) else value
