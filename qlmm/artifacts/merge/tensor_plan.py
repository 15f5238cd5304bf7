"""The tensors of a merged model: which there are, what they are made of, and in which files those lie.

A native base is one checkpoint, whose names are kept. An assembled base is two checkpoints and a connector; put
together under the names of LLaVA's class, it is an ordinary LLaVA checkpoint where that class can compute it.

Usage: ``outputs = Sources.of(manifest, base).outputs(deltas, dtype=None)``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from qlmm.artifacts.adapter.base_files import weight_files
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.merge.checkpoint_names import Group, Keys
from qlmm.artifacts.merge.deltas import Deltas
from qlmm.artifacts.safetensors_stream import Output, Reader, header
from qlmm.core.errors import ModelError
from qlmm.model.assembled.config import AssembledConfig
from qlmm.model.contract import connector as find_connector
from qlmm.model.loading.base import Base
from qlmm.model.loading.connector_weights import published_state
from qlmm.model.loading.hub import Located

__all__ = ["Sources", "is_plain"]

Make = Callable[[Reader], Tensor]


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """One checkpoint of the base: its tensors, and what its class's names become in the whole model."""

    keys: Keys
    groups: tuple[Group, ...]
    renamed: Callable[[str], str]


@dataclass(frozen=True)
class Sources:
    """Everything a merged model is made of.

    Attributes:
        manifest: the adapter's.
        model: the base on the meta device, as it was trained.
        merged: the class of the merged model, on the meta device.
        assembled: whether it is put together from several checkpoints.
        projector: name of an assembled base's connector module.
        checkpoints: of a native base, one; of an assembled one, the tower's and the language model's.
    """

    manifest: Manifest
    model: PreTrainedModel
    merged: PreTrainedModel
    assembled: bool
    projector: str
    checkpoints: tuple[_Checkpoint, ...]

    @classmethod
    def of(cls, manifest: Manifest, base: Base) -> Sources:
        """Look into the headers of the base's files; no weight is read.

        Args:
            manifest: the adapter's.
            base: its base.

        Raises:
            ModelError: A030 for a base that is stored quantised, A020, A025, A026 for files that are damaged, missing
                or no safetensors, M003 and following for those that cannot be had.
        """
        model, places = base.shape.model, base.places
        _check_unquantised(model.config)
        if "model" in places:
            whole = _checkpoint(places["model"], "base.model", model, lambda name: name)
            return cls(manifest, model, model, False, "", (whole,))
        with torch.device("meta"):
            language = AutoModelForCausalLM.from_config(model.config.text_config)
            merged = AutoModelForImageTextToText.from_config(model.config)
        inside = f"{language.base_model_prefix}."

        def spoken(name: str) -> str:
            if name.startswith(inside):
                return f"model.language_model.{name.removeprefix(inside)}"
            return f"lm_head.{name.rpartition('.')[2]}"

        (tower,), (projector,) = base.shape.parts.vision, base.shape.parts.connector
        seen = _checkpoint(places["vision"], "base.vision", model.get_submodule(tower), lambda name: f"{tower}.{name}")
        said = _checkpoint(places["language"], "base.language", language, spoken)
        return cls(manifest, model, merged, True, projector, (seen, said))

    @property
    def plain(self) -> bool:
        """Whether transformers alone loads the merged model."""
        return is_plain(self.merged)

    def fit_into(self, dtype: torch.dtype) -> bool:
        """Whether a dtype holds every weight of the base's files without rounding it."""
        stored = {one.dtype for part in self.checkpoints for group in part.groups for one in group.sources}
        return all(torch.promote_types(one, dtype) == dtype for one in stored if one.is_floating_point)

    def values(self, deltas: Deltas, dtype: torch.dtype | None) -> list[Output]:
        """Every tensor of the merged model, by the name it has there.

        Args:
            deltas: the adapter, and onto which base it is merged.
            dtype: of floating point tensors; None keeps each as it is in the base's files.

        Raises:
            ModelError: A027 for shapes that do not fit the configuration, A028 for weights that the files lack, A029
                for a connector that neither the adapter holds nor can be drawn again.
        """
        maker = Maker(deltas, {name: tuple(value.shape) for name, value in self.model.state_dict().items()})
        made: list[Output] = []
        for part in self.checkpoints:
            for group in part.groups:
                names = {own: part.renamed(own) for own in group.targets}
                for own, name in names.items():
                    self._check_shape(name, group.targets[own], maker.shapes[name])
                    kept = _kept(group, dtype)
                    made.append(
                        Output(name, kept, maker.shapes[name], _file(group), maker.value(group, names, own, kept))
                    )
        if self.assembled:
            made += list(self._of_connector(deltas, dtype or self._spoken_dtype))
        self._check_whole(made, deltas)
        return made

    def outputs(self, deltas: Deltas, dtype: torch.dtype | None) -> list[Output]:
        """Every tensor to write, in the order of the source's files: a native base's are named as there.

        Args:
            deltas: the adapter, and onto which base it is merged.
            dtype: of floating point tensors; None keeps each as it is in the base's files.

        Raises:
            ModelError: as `values`, and A022 for a form that cannot be merged.
        """
        values = self.values(deltas, dtype)
        if self.assembled:
            keys = Keys(self.merged)
            for one in values:
                keys.check_reads(one.name)
            return values
        (part,) = self.checkpoints
        maker = Maker(deltas, {one.name: one.shape for one in values})
        return [one for group in part.groups for one in _as_in_files(part.keys, group, maker, dtype)]

    @property
    def _spoken_dtype(self) -> torch.dtype:
        """The dtype of the language model's files."""
        stored = (one for group in self.checkpoints[-1].groups for one in group.sources)
        return next(one.dtype for one in stored if one.dtype.is_floating_point)

    def _check_shape(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        """A tensor has the configuration's shape; one with a row per token may have fewer rows."""
        fewer = found[1:] == wanted[1:] and found[:1] < wanted[:1] and name in self._vocabulary
        if found != wanted and not fewer:
            raise ModelError.one(
                "A027",
                f"{name} is {' x '.join(map(str, found))} in the base's files, not {' x '.join(map(str, wanted))}",
                help="the base's weights and its configuration do not belong together; fetch both again",
            )

    @property
    def _vocabulary(self) -> set[str]:
        """What has a row per token; an assembled model's has grown where the picture's token was not yet known."""
        if not self.assembled:
            return set()
        named = {"lm_head.bias": None, **dict(self.model.named_parameters(remove_duplicate=False))}
        head, words = self.model.get_output_embeddings().weight, self.model.get_input_embeddings().weight
        return {name for name, value in named.items() if value is None or value is head or value is words}

    def _of_connector(self, deltas: Deltas, dtype: torch.dtype) -> Iterator[Output]:
        """An assembled base's connector: from the adapter, or fresh as the run drew it, and LoRA on top."""
        projector = self.model.get_submodule(self.projector)
        held = all(f"{self.projector}.{name}" in deltas.replaced for name in projector.state_dict())
        connector = {} if held else self._fresh_connector
        last = str(self.checkpoints[-1].groups[-1].sources[0].file)
        folded = isinstance(projector, nn.Linear) and not isinstance(self.merged.config, AssembledConfig)
        for name, value in projector.state_dict().items():
            full = f"{self.projector}.{name}"
            key = f"{self.projector}.linear_1.{name}" if folded else full
            fresh = connector.get(name)
            yield Output(key, dtype, tuple(value.shape), last, _made(deltas, full, fresh, dtype))
        if folded:
            width = int(projector.get_parameter("weight").shape[0])
            for name, tensor in (("weight", torch.eye(width)), ("bias", torch.zeros(width))):
                key = f"{self.projector}.linear_2.{name}"
                yield Output(key, dtype, tuple(tensor.shape), last, _always(tensor.to(dtype)))

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
            raise ModelError.one(
                "A029",
                f"the adapter does not hold the {section.kind}, whose start depends on the language model: it cannot "
                "be made again",
                help="keep base and adapter apart, or train with adapter.connector=full",
            )
        layers = [layer for layer in self.model.get_submodule(self.projector).modules() if isinstance(layer, nn.Linear)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.manifest.seed)
            fresh = found.build(found.read(section.settings), layers[0].in_features, layers[-1].out_features)
        return dict(fresh.state_dict())

    def _check_whole(self, made: list[Output], deltas: Deltas) -> None:
        """Every weight that the adapter belongs to, and all of an assembled model, must be there."""
        state = self.merged.state_dict(keep_vars=True)
        there = {one.name for one in made}
        held = {id(state[name]) for name in there & state.keys()}
        wanted = state.keys() if self.assembled else deltas.touched | deltas.beside
        missing = sorted(name for name in wanted if name not in there and id(state.get(name)) not in held)
        if missing:
            raise ModelError.one(
                "A028",
                f"the base's files lack {len(missing)} of its weights, such as {missing[0]}",
                help="fetch the base's files again",
            )


def _check_unquantised(config: PreTrainedConfig) -> None:
    """Refuse a base that exists in quantised form only."""
    for one in (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))):
        stated = vars(one).get("quantization_config")
        if stated is not None:
            method = stated.get("quant_method", "?") if isinstance(stated, dict) else type(stated).__name__
            raise ModelError.one(
                "A030",
                f"the base is stored quantised ({method}); there are no weights that LoRA could be added to",
                help="keep base and adapter apart, or train on the 16-bit model it was made from",
            )


def is_plain(model: PreTrainedModel) -> bool:
    """Whether a model's class is one of transformers, those of its parts included."""
    classes = {type(module) for module in model.modules() if isinstance(module, PreTrainedModel)}
    return all(one.__module__.startswith("transformers.") for one in classes)


class Maker:
    """Makes merged tensors; of those that are read together, the last ones are kept until others are asked for."""

    def __init__(self, deltas: Deltas, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.deltas, self.shapes = deltas, shapes
        self._last: tuple[object, dict[str, Tensor]] = (None, {})

    def value(self, group: Group, names: Mapping[str, str], own: str, kept: torch.dtype) -> Make:
        """What makes one of a group's tensors in the form of the model."""
        return lambda reader: self._together(group, lambda: self._merged(group, names, kept, reader))[own]

    def in_file(self, keys: Keys, group: Group, key: str, kept: torch.dtype) -> Make:
        """What makes one of a group's tensors in the form of the files."""
        names = {own: own for own in group.targets}

        def back(reader: Reader) -> dict[str, Tensor]:
            return keys.back(group, self._merged(group, names, kept, reader))

        return lambda reader: self._together(group, lambda: back(reader))[key]

    def _merged(self, group: Group, names: Mapping[str, str], kept: torch.dtype, reader: Reader) -> dict[str, Tensor]:
        return {
            own: self.deltas.apply(names[own], _grown(value, self.shapes.get(names[own], tuple(value.shape))), kept)
            for own, value in group.read(reader).items()
        }

    def _together(self, group: Group, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if group.converter is None:
            self._last = (None, {})
            return make()
        if self._last[0] is not group:
            self._last = (None, {})
            self._last = (group, make())
        return self._last[1]


def _as_in_files(keys: Keys, group: Group, maker: Maker, dtype: torch.dtype | None) -> Iterator[Output]:
    """A native base's tensors under their files' names, what nothing is merged into in its files' form."""
    kept, place = _kept(group, dtype), _file(group)
    touched = bool(maker.deltas.touched.intersection(group.targets))
    if touched and group.converter is not None:
        keys.check_leads_back(group)
        for one in group.sources:
            yield Output(one.key, kept, one.shape, place, maker.in_file(keys, group, one.key, kept))
        return
    for one in group.sources:
        name = next(iter(group.targets)) if touched else ""
        alone = Group((one,), {one.key: one.shape})
        yield Output(one.key, kept, one.shape, place, maker.value(alone, {one.key: name}, one.key, kept))


def _kept(group: Group, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype to write: the one asked for, for floating point tensors, else that of the files."""
    stored = group.sources[0].dtype
    return dtype if dtype is not None and stored.is_floating_point else stored


def _file(group: Group) -> str:
    return str(group.sources[0].file)


def _grown(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Embeddings or head with rows for tokens that were added: the mean of all rows, as assembling gives them."""
    if tuple(weight.shape) == shape:
        return weight
    mean = weight.mean(0, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(shape[0] - weight.shape[0], *mean.shape)])


def _made(deltas: Deltas, name: str, fresh: Tensor | None, dtype: torch.dtype) -> Make:
    return lambda reader: deltas.apply(name, fresh if fresh is not None else torch.empty(0), dtype)


def _always(tensor: Tensor) -> Make:
    return lambda reader: tensor


def _checkpoint(place: Located, key: str, model: nn.Module, renamed: Callable[[str], str]) -> _Checkpoint:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"{key} is not a model of transformers")
    stored = [one for path in weight_files(place, key) for one in header(path)]
    keys = Keys(model)
    groups = sorted(keys.groups(stored), key=lambda group: str(group.sources[0].file))
    return _Checkpoint(keys, tuple(groups), renamed)
