"""From a recipe's `base` section to a model: first as a blueprint without weights, then loaded and quantised.

Both kinds of base go through the same three functions, and nothing after them asks which kind it was.

Usage:
    shape = blueprint(recipe.base)          # configurations only
    processor = load_processor(recipe.base)
    model = load_model(recipe.base, precision, seed=0)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from qlmm.core.errors import ModelError
from qlmm.core.naming import close
from qlmm.model.assembled.build import assemble, assembled_config, connector_for, put_together
from qlmm.model.assembled.language import add_image_token, check_language, embedding_width, word_statistics
from qlmm.model.assembled.processor import assembled_processor
from qlmm.model.assembled.processor import load_processor as load_assembled_processor
from qlmm.model.assembled.vision import VisionFacts, picture_size, prepared, vision_config, vision_facts
from qlmm.model.contract import connector as find_connector
from qlmm.model.loading.hub import Located, commit_of, config_of, config_sha256, locate, reading
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import keep_trainable, quantization, skip_names
from qlmm.model.parts.split import Parts, split
from qlmm.recipe.schema import BaseSection, ConnectorSection

__all__ = [
    "Blueprint",
    "answers_in_decoder",
    "blueprint",
    "identity",
    "load_model",
    "load_processor",
    "load_saved_processor",
    "pinned",
    "vocabulary",
]

TEMPLATES = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A base without weights: every module and parameter is there, on the meta device."""

    model: PreTrainedModel
    parts: Parts


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What an assembled base is made of, before any weights."""

    section: BaseSection
    connector: ConnectorSection
    vision: Located
    vision_config: PreTrainedConfig
    facts: VisionFacts
    image_processor: BaseImageProcessor
    language: Located
    language_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


def blueprint(base: BaseSection) -> Blueprint:
    """The base on the meta device, from configurations and tokenizers alone.

    Raises:
        ModelError: M003 and following for whatever makes the base impossible.
    """
    with torch.device("meta"):
        model = _native_shape(base) if base.model is not None else _assembled_shape(base)
    return Blueprint(model, split(model))


def load_model(base: BaseSection, precision: Precision, *, seed: int) -> PreTrainedModel:
    """The base with its weights: language model quantised as asked, a fresh connector in fp32, the rest in `precision`.

    Args:
        base: the recipe's section.
        precision: where the model goes and what it computes in.
        seed: decides a fresh connector's weights, so that they can be rebuilt bit for bit.
    """
    model = _load_native(base, precision) if base.model is not None else _load_assembled(base, precision, seed)
    model.config.use_cache = False
    return model.eval()


def load_processor(base: BaseSection) -> ProcessorMixin:
    """The processor that turns conversations and pictures into the base's inputs, with the recipe's chat template.

    Raises:
        ModelError: M040 for an unknown template, M041 when there is none at all.
    """
    template = chat_template(base)
    processor = _base_processor(base, template)
    if template is not None:
        processor.chat_template = template
    if not processor.chat_template:
        raise ModelError.one(
            "M041",
            f"{base.model or base.language} has no chat template, and the recipe gives none",
            help=f"set base.chat_template to one of {', '.join(template_names())}, or to a .jinja file",
        )
    return processor


def vocabulary(base: BaseSection) -> dict[str, int]:
    """The base's tokens and their numbers; the recipe's chat template need not be at hand for it."""
    tokens: dict[str, int] = _base_processor(base, None).tokenizer.get_vocab()
    return tokens


def _base_processor(base: BaseSection, template: str | None) -> ProcessorMixin:
    if base.model is None:
        return _join_processor(_pieces(base), template)
    located = locate(base.model)
    with reading("base.model", located):
        return AutoProcessor.from_pretrained(located.path, **located.options)


def load_saved_processor(base: BaseSection, folder: Path) -> ProcessorMixin:
    """The processor that was saved with an adapter."""
    if base.model is None:
        _pieces(base)  # makes a tower of ours known, whose image processor may be its own
        return load_assembled_processor(folder)
    return AutoProcessor.from_pretrained(str(folder))


def identity(base: BaseSection) -> dict[str, Any]:
    """What exactly the base is: kind, and per part its id, revision and a hash of its configuration."""
    if base.model is not None:
        return {"kind": "native", "parts": {"model": _facts(locate(base.model), "base.model")}}
    pieces = _pieces(base)
    parts = {
        "vision": _facts(pieces.vision, "base.vision"),
        "language": _facts(pieces.language, "base.language"),
    }
    return {"kind": "assembled", "parts": parts, "connector": pieces.connector.model_dump()}


def _facts(located: Located, key: str) -> dict[str, str | None]:
    config = config_of(located, key)
    revision = commit_of(located) or located.revision
    return {"id": located.name, "revision": revision, "config_sha256": config_sha256(config)}


def pinned(base: BaseSection) -> BaseSection:
    """The same base with each Hub id at the commit that is used now: what a branch points to changes."""
    names = {"model": base.model, "vision": base.vision, "language": base.language}
    places = {key: locate(name) for key, name in names.items() if name is not None}
    commits = {key: commit_of(place) for key, place in places.items()}
    return base.model_copy(update={key: f"{places[key].path}@{commit}" for key, commit in commits.items() if commit})


def answers_in_decoder(base: BaseSection) -> bool:
    """Whether the base has a decoder of its own for answers, as T5 has; those of assembled bases never do."""
    return base.model is not None and bool(_native_config(base)[1].is_encoder_decoder)


def template_names() -> list[str]:
    """The packaged chat templates a recipe can name."""
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


def chat_template(base: BaseSection) -> str | None:
    """The template the recipe names, as Jinja source; None leaves the tokenizer's own.

    Raises:
        ModelError: M040 when there is no such template.
    """
    name = base.chat_template
    if name is None:
        return None
    path = Path(name) if name.endswith(".jinja") else TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        raise ModelError.one(
            "M040", f"base.chat_template: there is no template `{name}`", help=close(name, template_names())
        )
    return path.read_text("utf-8")


def _native_config(base: BaseSection) -> tuple[Located, PreTrainedConfig]:
    located = locate(base.model or "")
    config = config_of(located, "base.model")
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelError.one(
            "M010",
            f"base.model: {located.name} is no vision-language model (it is of kind {config.model_type})",
            help="a language model can be given eyes: name it as base.language, a vision encoder such as CLIP as "
            "base.vision, and say what joins them in base.connector",
        )
    return located, config


def _native_shape(base: BaseSection) -> PreTrainedModel:
    located, config = _native_config(base)
    with reading("base.model", located):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    return model


def _load_native(base: BaseSection, precision: Precision) -> PreTrainedModel:
    located, _ = _native_config(base)
    shape = blueprint(base)
    keep = skip_names(shape.model, shape.parts)
    model: PreTrainedModel = _load(AutoModelForImageTextToText, located, base, precision, keep)
    return model


def _load(auto: Any, located: Located, base: BaseSection, precision: Precision, keep: list[str]) -> PreTrainedModel:
    """Load a model with language layers quantised, straight onto its device."""
    with reading("base", located):
        model: PreTrainedModel = auto.from_pretrained(
            located.path,
            dtype=precision.compute,
            quantization_config=quantization(base.quantize, keep=keep, compute=precision.compute),
            device_map={"": 0} if precision.device == "cuda" else None,
            **located.options,
        )
    keep_trainable(model)
    return model


def _pieces(base: BaseSection) -> _Pieces:
    """Configurations, tokenizer and image processor of an assembled base, each checked before the next is read."""
    if base.vision is None or base.language is None or base.connector is None:
        raise ValueError("the recipe's schema lets only whole bases through")
    wanted = find_connector(base.connector.kind)
    wanted.read(base.connector.settings)
    vision, language = locate(base.vision), locate(base.language)
    with reading("base.vision", vision):
        seen = vision_config(vision.path, vision.revision)
        pictures = AutoImageProcessor.from_pretrained(vision.path, **vision.options)
    spoken = config_of(language, "base.language")
    check_language(spoken, language.name)
    with reading("base.language", language):
        tokenizer = AutoTokenizer.from_pretrained(language.path, **language.options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    pictures = prepared(pictures, squash=wanted.squash)
    return _Pieces(
        section=base,
        connector=base.connector,
        vision=vision,
        vision_config=seen,
        facts=vision_facts(seen, picture_size(pictures)),
        image_processor=pictures,
        language=language,
        language_config=spoken,
        tokenizer=tokenizer,
    )


def _language_shape(pieces: _Pieces) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(pieces.language_config)
    return model


def _assembled_shape(base: BaseSection) -> PreTrainedModel:
    with torch.device("cpu"):  # picture sizes are found by preparing blank pictures, which needs real memory
        pieces = _pieces(base)
    tower = AutoModel.from_config(pieces.vision_config)
    return _join(pieces, tower, _language_shape(pieces), seed=0, whole=False)


def _load_assembled(base: BaseSection, precision: Precision, seed: int) -> PreTrainedModel:
    pieces = _pieces(base)
    with reading("base.vision", pieces.vision):
        tower = AutoModel.from_pretrained(
            pieces.vision.path, config=pieces.vision_config, dtype=precision.compute, **pieces.vision.options
        )
    tower = tower.to(precision.device)
    shape = _language_shape(pieces)
    head = shape.get_output_embeddings()
    keep = [name for name, module in shape.named_modules() if module is head]
    language = _load(AutoModelForCausalLM, pieces.language, base, precision, keep)
    return _join(pieces, tower, language, seed=seed, whole=True)


def _join(
    pieces: _Pieces, tower: PreTrainedModel, language: PreTrainedModel, *, seed: int, whole: bool
) -> PreTrainedModel:
    """One model from tower and language model, loaded (`whole`) or without weights."""
    image_token_id = add_image_token(pieces.tokenizer, language)
    connector, spec = connector_for(
        pieces.connector.kind,
        pieces.connector.settings,
        facts=pieces.facts,
        text_width=embedding_width(language),
        seed=seed,
        vision_layer=pieces.section.vision_layer,
    )
    config = assembled_config(pieces.vision_config, language, spec, image_token_id)
    if not whole:
        return put_together(tower, language, connector, config)
    start = find_connector(pieces.connector.kind).start
    if start is not None:
        start(connector, *word_statistics(language))
    return assemble(tower, language, connector.to(language.device), config)


def _join_processor(pieces: _Pieces, template: str | None) -> ProcessorMixin:
    language = _language_shape(pieces)
    with torch.device("meta"):
        image_token_id = add_image_token(pieces.tokenizer, language)
        _, spec = connector_for(
            pieces.connector.kind,
            pieces.connector.settings,
            facts=pieces.facts,
            text_width=embedding_width(language),
            seed=0,
            vision_layer=pieces.section.vision_layer,
        )
    config = assembled_config(pieces.vision_config, language, spec, image_token_id)
    return assembled_processor(
        pieces.image_processor, pieces.tokenizer, config=config, facts=pieces.facts, chat_template=template
    )
