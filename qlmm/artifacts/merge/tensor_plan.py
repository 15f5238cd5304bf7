"""The tensors of a merged model: which there are, what they are made of, and in which files those lie.

A native base is one checkpoint, whose names are kept. An assembled base is two checkpoints and a connector; put
together under the names of LLaVA's class, it is an ordinary LLaVA checkpoint where that class can compute it.

Usage: ``outputs = sources_of_merge(manifest, base).outputs(deltas, dtype=None)``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from qlmm.artifacts.adapter.base_files import base_file, weight_files
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.merge.checkpoint_names import Group, Keys
from qlmm.artifacts.merge.deltas import Deltas
from qlmm.artifacts.safetensors_stream import Output, Reader, header
from qlmm.core.errors import ModelError
from qlmm.model.assembled.model import AssembledConfig
from qlmm.model.contract import connector as find_connector
from qlmm.model.loading.base import Base
from qlmm.model.loading.connector_weights import published_state
from qlmm.model.loading.hub import Located

__all__ = ["Sources", "is_plain", "sources_of_merge"]

Make = Callable[[Reader], Tensor]


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """One checkpoint of the base: its tensors, and what its class's names become in the whole model."""

    place: Located
    key: str
    keys: Keys
    groups: tuple[Group, ...]
    renamed: Callable[[str], str]

    @classmethod
    def read(cls, place: Located, key: str, model: nn.Module, renamed: Callable[[str], str]) -> _Checkpoint:
        """Look into the headers of its files; no weight is read."""
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"{key} is not a model of transformers")
        stored = [one for path in weight_files(place, key) for one in header(path)]
        keys = Keys(model)
        groups = sorted(keys.groups(stored), key=lambda group: str(group.sources[0].file))
        return cls(place, key, keys, tuple(groups), renamed)


def sources_of_merge(manifest: Manifest, base: Base) -> Sources:
    """What a merged model is made of, from the headers of the base's files.

    Raises:
        ModelError: A030 for a base that is stored quantised, A020, A025, A026 for files that are damaged, missing or
            not safetensors, M003 and following for those that cannot be had.
    """
    model, places = base.shape.model, base.places
    _check_unquantised(model.config)
    if base.identity.whole is not None:
        return Sources(model, model, (_Checkpoint.read(places["model"], "base.model", model, lambda name: name),))
    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(model.config.text_config)
        merged = AutoModelForImageTextToText.from_config(model.config)
    inside = f"{language.base_model_prefix}."

    def of_language(name: str) -> str:
        if name.startswith(inside):
            return f"model.language_model.{name.removeprefix(inside)}"
        return f"lm_head.{name.rpartition('.')[2]}"

    (tower,), (projector,) = base.shape.parts.vision, base.shape.parts.connector
    parts = (
        _Checkpoint.read(places["vision"], "base.vision", model.get_submodule(tower), lambda name: f"{tower}.{name}"),
        _Checkpoint.read(places["language"], "base.language", language, of_language),
    )
    return Assembled(model, merged, parts, manifest, projector)


@dataclass(frozen=True)
class Sources:
    """All that a merged model is made of: of a native base, one checkpoint, whose names and order are kept.

    Attributes:
        model: the base on the meta device, as it was trained.
        merged: the class of the merged model, on the meta device.
        checkpoints: the base's.
    """

    model: PreTrainedModel
    merged: PreTrainedModel
    checkpoints: tuple[_Checkpoint, ...]

    def fit_into(self, dtype: torch.dtype) -> bool:
        """Whether a dtype can store every weight of the base's files without rounding it."""
        stored = {one.dtype for part in self.checkpoints for group in part.groups for one in group.sources}
        return all(torch.promote_types(one, dtype) == dtype for one in stored if one.is_floating_point)

    def values(self, deltas: Deltas, dtype: torch.dtype | None) -> list[Output]:
        """Every tensor of the merged model, by the name it has there; without a dtype, in that of the base's files.

        Raises:
            ModelError: A027 for shapes that do not fit the configuration, A028 for weights that the files lack, A029
                for a connector that neither the adapter has nor can be drawn again.
        """
        maker = Maker(deltas, {name: tuple(value.shape) for name, value in self.model.state_dict().items()})
        made: list[Output] = []
        for part in self.checkpoints:
            for group in part.groups:
                names, kept = {own: part.renamed(own) for own in group.targets}, _kept(group, dtype)
                for own, name in names.items():
                    shape = maker.shapes[name]
                    self._check_shape(name, group.targets[own], shape)
                    made.append(Output(name, kept, shape, _file(group), maker.tensor(group, own, kept, names)))
        made += self._added(deltas, dtype)
        self._check_whole(made, self._wanted(deltas))
        return made

    def outputs(self, deltas: Deltas, dtype: torch.dtype | None) -> list[Output]:
        """Every tensor to write; raises as `values` does, and A022 for a form that cannot be merged."""
        maker = Maker(deltas, {one.name: one.shape for one in self.values(deltas, dtype)})
        (part,) = self.checkpoints
        return [one for group in part.groups for one in _as_in_files(part.keys, group, maker, dtype)]

    def config(self) -> dict[str, JsonValue]:
        """What the merged model's ``config.json`` is made from."""
        (part,) = self.checkpoints
        path = base_file(part.place, part.key, "config.json")
        stated: dict[str, JsonValue] = json.loads(path.read_text("utf-8")) if path is not None else {}
        return stated

    def _added(self, deltas: Deltas, dtype: torch.dtype | None) -> Iterator[Output]:
        """Tensors that come from none of the checkpoints."""
        return iter(())

    def _wanted(self, deltas: Deltas) -> Set[str]:
        """Names of the weights that must be there."""
        return deltas.touched | deltas.beside

    def _may_grow(self, name: str) -> bool:
        """Whether a tensor has a row per token, to which assembling may have added some."""
        return False

    def _check_shape(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        fewer = found[1:] == wanted[1:] and found[:1] < wanted[:1] and self._may_grow(name)
        if found != wanted and not fewer:
            message = f"{name} is {' x '.join(map(str, found))} in the base's files, not {' x '.join(map(str, wanted))}"
            help = "the base's weights and its configuration do not belong together; fetch both again"
            raise ModelError.one("A027", message, help=help)

    def _check_whole(self, made: list[Output], wanted: Set[str]) -> None:
        state = self.merged.state_dict(keep_vars=True)
        there = {one.name for one in made}
        # Tied weights are there under one of their names.
        tied = {id(state[name]) for name in there & state.keys()}
        missing = sorted(name for name in wanted if name not in there and id(state.get(name)) not in tied)
        if missing:
            message = f"the base's files lack {len(missing)} of its weights, such as {missing[0]}"
            raise ModelError.one("A028", message, help="fetch the base's files again")


@dataclass(frozen=True)
class Assembled(Sources):
    """The checkpoints of a tower and a language model, and the connector `projector`, under the names of one class."""

    manifest: Manifest
    projector: str

    def outputs(self, deltas: Deltas, dtype: torch.dtype | None) -> list[Output]:
        """Every tensor to write, under its name in the merged model."""
        values, keys = self.values(deltas, dtype), Keys(self.merged)
        for one in values:
            keys.check_reads(one.name)
        return values

    def config(self) -> dict[str, JsonValue]:
        """The configuration that assembling made."""
        made: dict[str, JsonValue] = json.loads(self.merged.config.to_json_string())
        return made

    def _wanted(self, deltas: Deltas) -> Set[str]:
        return set(self.merged.state_dict())

    def _may_grow(self, name: str) -> bool:
        """Tokens were added where the language model did not know the picture's."""
        vocabulary = (self.model.get_output_embeddings().weight, self.model.get_input_embeddings().weight)
        named = dict(self.model.named_parameters(remove_duplicate=False))
        return name == "lm_head.bias" or any(named.get(name) is one for one in vocabulary)

    def _added(self, deltas: Deltas, dtype: torch.dtype | None) -> Iterator[Output]:
        """The connector: from the adapter, or fresh as the run drew it, and LoRA on top."""
        language = self.checkpoints[-1].groups
        if dtype is None:
            stored = (one.dtype for group in language for one in group.sources)
            dtype = next(one for one in stored if one.is_floating_point)
        projector = self.model.get_submodule(self.projector)
        trained = all(f"{self.projector}.{name}" in deltas.replaced for name in projector.state_dict())
        fresh = {} if trained else self._fresh_connector
        last = _file(language[-1])
        folded = isinstance(projector, nn.Linear) and not isinstance(self.merged.config, AssembledConfig)
        for name, value in projector.state_dict().items():
            full = f"{self.projector}.{name}"
            key = f"{self.projector}.linear_1.{name}" if folded else full
            make = _made(deltas, full, fresh.get(name, torch.empty(0)), dtype)
            yield Output(key, dtype, tuple(value.shape), last, make)
        if folded:
            width = int(projector.get_parameter("weight").shape[0])
            for name, tensor in (("weight", torch.eye(width)), ("bias", torch.zeros(width))):
                key = f"{self.projector}.linear_2.{name}"
                yield Output(key, dtype, tuple(tensor.shape), last, _made(deltas, key, tensor, dtype))

    @cached_property
    def _fresh_connector(self) -> dict[str, Tensor]:
        """The connector's weights before training, by name, drawn as assembling draws them."""
        section = self.manifest.recipe.base.connector
        if section is None:
            raise ValueError("the recipe's schema lets only whole bases through")
        if (published := published_state(section)) is not None:
            return published
        found = find_connector(section.kind)
        if found.start is not None:
            message = f"the adapter lacks the {section.kind}, which cannot be made again: its start depends on words"
            help = "keep base and adapter apart, or train with adapter.connector=full"
            raise ModelError.one("A029", message, help=help)
        layers = [layer for layer in self.model.get_submodule(self.projector).modules() if isinstance(layer, nn.Linear)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.manifest.seed)
            fresh = found.build(found.read(section.settings), layers[0].in_features, layers[-1].out_features)
        return dict(fresh.state_dict())


def _check_unquantised(config: PreTrainedConfig) -> None:
    """Refuse a base that exists in quantised form only."""
    for one in (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))):
        stated = vars(one).get("quantization_config")
        if stated is not None:
            method = stated.get("quant_method", "?") if isinstance(stated, dict) else type(stated).__name__
            message = f"the base is stored quantised ({method}); there are no weights that LoRA could be added to"
            help = "keep base and adapter apart, or train on the 16-bit model it was made from"
            raise ModelError.one("A030", message, help=help)


def is_plain(model: PreTrainedModel) -> bool:
    """Whether a model's class is one of transformers, those of its parts included."""
    classes = {type(module) for module in model.modules() if isinstance(module, PreTrainedModel)}
    return all(one.__module__.startswith("transformers.") for one in classes)


class Maker:
    """Makes merged tensors; the last ones that were read together are kept until others are asked for."""

    def __init__(self, deltas: Deltas, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.deltas, self.shapes = deltas, shapes
        self._last: tuple[object, dict[str, Tensor]] = (None, {})

    def tensor(
        self, group: Group, key: str, kept: torch.dtype, names: Mapping[str, str], *, back: bool = False
    ) -> Make:
        """What makes one of a group's tensors.

        Args:
            group: the tensors that are read together.
            key: which of them, by its name in the model, or where they go back, by its name in the files.
            kept: dtype of the result.
            names: the name in the whole model for each name that the group's own model has.
            back: bring the tensors back to the form of the files.
        """

        def together(reader: Reader) -> dict[str, Tensor]:
            read = group.read(reader)
            merged = {own: self.deltas.apply(names[own], self._grown(names[own], read[own]), kept) for own in read}
            return group.back(merged) if back and group.back is not None else merged

        def one(reader: Reader) -> Tensor:
            if self._last[0] is not group:
                # Let go of the last ones first: two groups of experts may be too large together.
                self._last = (None, {})
                made = together(reader)
                if group.join is None:
                    return made[key]
                self._last = (group, made)
            return self._last[1][key]

        return one

    def _grown(self, name: str, weight: Tensor) -> Tensor:
        """Embeddings or head with rows for added tokens: the mean of all rows, as assembling gives them."""
        missing = self.shapes[name][0] - weight.shape[0] if name in self.shapes and weight.ndim else 0
        if not missing:
            return weight
        mean = weight.mean(0, dtype=torch.float32).to(weight.dtype)
        return torch.cat([weight, mean.expand(missing, *mean.shape)])


def _as_in_files(keys: Keys, group: Group, maker: Maker, dtype: torch.dtype | None) -> Iterator[Output]:
    """A native base's tensors under their files' names, what nothing is merged into in its files' form."""
    kept, touched = _kept(group, dtype), bool(maker.deltas.touched.intersection(group.targets))
    joined = touched and group.join is not None
    if joined:
        keys.check_leads_back(group)
    for one in group.sources:
        if joined:
            make = maker.tensor(group, one.key, kept, {own: own for own in group.targets}, back=True)
        else:
            name = next(iter(group.targets)) if touched else ""
            make = maker.tensor(Group((one,), {one.key: one.shape}), one.key, kept, {one.key: name})
        yield Output(one.key, kept, one.shape, _file(group), make)


def _kept(group: Group, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype to write: the one asked for, for floating point tensors, else that of the files."""
    stored = group.sources[0].dtype
    return dtype if dtype is not None and stored.is_floating_point else stored


def _file(group: Group) -> str:
    return str(group.sources[0].file)


def _made(deltas: Deltas, name: str, fresh: Tensor, dtype: torch.dtype) -> Make:
    return lambda reader: deltas.apply(name, fresh, dtype)
