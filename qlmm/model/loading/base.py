"""The base: what a recipe's `base` section names, resolved once a command and handed down from there.

Each configuration, tokenizer and image processor is read at most once; only weights are read as often as they are
asked for. Both kinds of base stand behind one interface, and nothing after asks which it is.

Usage:
    base = Base.resolve(recipe.base)
    base.shape.parts, base.processor  # no weight is read
    model = base.load(precision, seed=0)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, ProcessorMixin

from qlmm.core.errors import NoTemplate
from qlmm.data.encoding.encoder import Encoder
from qlmm.model.image_budget.budget import Budget, budgeted
from qlmm.model.loading.assembled import AssembledSource
from qlmm.model.loading.chat_template import chat_template, template_names
from qlmm.model.loading.hub import Located
from qlmm.model.loading.identity import BaseIdentity, Role
from qlmm.model.loading.native import NativeSource
from qlmm.model.loading.source import BaseSource, Blueprint
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind
from qlmm.recipe.schema import BaseSection, DataSection

__all__ = ["Base", "Blueprint"]


@dataclass(frozen=True)
class Base:
    """A base whose configurations were read and found possible.

    Attributes:
        section: the recipe's section, as it was written.
        source: its kind's implementation.
    """

    section: BaseSection
    source: BaseSource

    @classmethod
    def resolve(cls, section: BaseSection) -> Base:
        """Read a base's configurations and check them; no weight is read.

        Raises:
            UsageError: B001 and following for packaged weights that cannot be prepared, N001 for an unknown connector.
            ModelError: M003 and following for a part that cannot be had, M010 and M101 and following for what makes
                the base impossible.
        """
        if section.model is not None:
            return cls(section, NativeSource.read(section.model))
        return cls(section, AssembledSource.read(section))

    @property
    def name(self) -> str:
        """What people call it: the model, or its three parts."""
        if self.section.connector is None:
            return str(self.section.model)
        return f"{self.section.vision} + {self.section.connector.kind} + {self.section.language}"

    @property
    def identity(self) -> BaseIdentity:
        """What exactly it is: kind, and per part its id, revision and a hash of its configuration."""
        return self.source.identity

    @property
    def places(self) -> Mapping[Role, Located]:
        """The checkpoints it consists of, each at the commit that was looked at."""
        return self.source.places

    @property
    def text_place(self) -> tuple[Located, str]:
        """The checkpoint that generates text, and its recipe key."""
        return self.places[self.source.speaks], f"base.{self.source.speaks}"

    @property
    def answers_in_decoder(self) -> bool:
        """Whether answers go to a decoder of their own, as in T5, instead of following the question."""
        return self.source.answers_in_decoder

    @property
    def shape(self) -> Blueprint:
        """The base on the meta device; it is shared, so attach adapters to a copy.

        Raises:
            ModelError: M010 when its parts cannot be told apart.
        """
        return self.source.shape

    @property
    def unquantised(self) -> frozenset[str]:
        """Linear layers that stay as they are when the base is quantised, by their names in `shape`."""
        return self.source.unquantised

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The processor that turns conversations and pictures into inputs, with the recipe's chat template.

        Raises:
            ModelError: M040 for an unknown template, M041 when there is none at all.
        """
        template = chat_template(self.section.chat_template)
        processor = copy.copy(self.source.processor)
        if template is not None:
            processor.chat_template = template
        if not processor.chat_template:
            raise NoTemplate.one(
                "M041",
                f"{self.section.model or self.section.language} has no chat template of its own",
                key="base.chat_template",
                help=f"set base.chat_template to one of {', '.join(template_names())}, or to a .jinja file",
            )
        return processor

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Tokens and their numbers; the recipe's chat template need not be at hand for it."""
        tokens: dict[str, int] = self.source.processor.tokenizer.get_vocab()
        return tokens

    def saved_processor(self, folder: Path) -> ProcessorMixin:
        """The processor that was saved with an adapter of this base."""
        return self.source.saved_processor(folder)

    def encoder(self, data: DataSection, processor: ProcessorMixin | None = None) -> tuple[Encoder, tuple[str, ...]]:
        """An encoder under a recipe's pixel budget, and what the budget set, in words.

        Args:
            data: the recipe's section.
            processor: a saved one instead of the base's own; it is copied, never changed.

        Raises:
            ModelError: D030 and following when the processor cannot be used for training, M060 and following when it
                cannot follow the budget.
        """
        own, words = budgeted(processor or self.processor, Budget.of(data))
        decoder = self.answers_in_decoder
        return Encoder.make(own, max_length=data.max_length, overlong=data.overlong, decoder=decoder), words

    def load(self, precision: Precision, *, seed: int, quantize: QuantKind | None = None) -> PreTrainedModel:
        """The base with its weights, in evaluation mode: a new model with every call.

        Args:
            precision: where the model goes and what it computes in.
            seed: decides a fresh connector's weights, so that they can be rebuilt bit for bit.
            quantize: how the language model's linear layers are stored; None as the recipe says.
        """
        model = self.source.load(precision, quantize or self.section.quantize, seed)
        model.config.use_cache = False
        return model.eval()

    def pinned(self) -> BaseSection:
        """The recipe's section with each Hub id at the commit that was looked at: what a branch points to changes."""
        at: dict[str, object] = {
            role: self.identity.parts[role].pinned for role, place in self.places.items() if place.at
        }
        weights = self.identity.parts.get("connector")
        if weights is not None and self.section.connector is not None:
            at["connector"] = self.section.connector.model_copy(update={"weights": weights.pinned})
        return self.section.model_copy(update=at)
