"""What a recipe may say: seven sections of documented, typed keys.

The descriptions below are the documentation: ``qlmm recipe explain`` and the reference page are made from them.
Whether a connector, a format or a model exists is checked when the run is planned; reading a recipe needs no torch.

Usage: ``Recipe.model_validate_json(text)``; ``qlmm.recipe.load`` reads YAML and names the place of what is wrong
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic_core import PydanticKnownError

from qlmm.core.naming import NAME_RULE, names
from qlmm.core.units import memory_bytes

__all__ = [
    "MOST_RANK",
    "OBJECTIVES",
    "AdapterSection",
    "BaseSection",
    "ConnectorSection",
    "DataSection",
    "EvaluationSection",
    "OutputSection",
    "Recipe",
    "Source",
    "TrainingSection",
]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
FromZero = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME_RULE)]
# The folder whose files are the objectives; their names are listed without importing any.
OBJECTIVES = "qlmm.training.objectives"
# More than any layer has; an adapter of it would be larger than its base.
MOST_RANK = 1 << 14


def _a_share_or_a_number(rows: float) -> float:
    if rows >= 1 and not rows.is_integer():
        raise ValueError("`data.max_bad_rows` is a share of all rows below 1, or a whole number of rows")
    return rows


BadRows = Annotated[float, Field(ge=0.0), AfterValidator(_a_share_or_a_number)]


def _an_objective(name: str) -> str:
    known = names(OBJECTIVES)
    if name not in known:
        raise PydanticKnownError("literal_error", {"expected": ", ".join(f"'{one}'" for one in known)})
    return name


def _a_size(text: str) -> str:
    memory_bytes(text)
    return text


MemorySize = Annotated[str, AfterValidator(_a_size)]
ObjectiveName = Annotated[Name, AfterValidator(_an_objective)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are never converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class ConnectorSection(BaseModel):
    """What stands between vision tower and language model; further keys are its own settings, and ``weights``."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, hide_input_in_errors=True)

    kind: Name = Field(description="Name of a file in qlmm/model/connectors: linear, mlp, abstractor.")

    @property
    def settings(self) -> dict[str, Any]:
        """The connector's own keys, checked by the connector itself when the run is planned."""
        return {key: value for key, value in (self.model_extra or {}).items() if key != "weights"}

    @property
    def weights(self) -> str | None:
        """Hub id or folder of the published checkpoint to start from."""
        return (self.model_extra or {}).get("weights")

    @model_validator(mode="after")
    def _weights_are_named(self) -> ConnectorSection:
        if not isinstance(self.weights, str | None):
            raise ValueError("`weights` is the Hub id or the folder of a published checkpoint")
        return self


class BaseSection(Section):
    """The model to start from: a native vision-language model, or vision + connector + language."""

    model: str | None = Field(None, description="Native base: Hub id (id@commit pins it) or folder of its model.")
    vision: str | None = Field(
        None,
        description="Assembled base: Hub id, folder or builtin:<name> of a vision encoder (CLIP, SigLIP, DINOv2, ViT), "
        "or of a released mPLUG-Owl, whose own is then taken.",
    )
    language: str | None = Field(
        None,
        description="Assembled base: Hub id, folder or builtin:<name> of a causal language model, or of a released "
        "mPLUG-Owl, whose own is then taken.",
    )
    connector: ConnectorSection | None = Field(None, description="Assembled base: the connector and its settings.")
    vision_layer: int | None = Field(
        None,
        description="Assembled base: which hidden state of the tower feeds the connector; -2 is LLaVA's. "
        "Unset: the connector's own choice (the abstractor takes the final, normalised tokens).",
    )
    chat_template: str | None = Field(
        None,
        description="Name of a template in qlmm/model/templates (owl, vicuna, chatml, plain; blip2, paligemma for "
        "those bases) or a .jinja file; unset: the tokenizer's own.",
    )
    quantize: Literal["none", "int8", "nf4", "fp4"] = Field(
        "nf4",
        description="How the language model's linear layers are stored (4-bit with double quantisation); "
        "nothing else is ever quantised.",
    )

    @model_validator(mode="after")
    def _one_kind_of_base(self) -> BaseSection:
        assembled = [self.vision, self.language, self.connector]
        if self.model is not None and any(part is not None for part in assembled):
            raise ValueError("`model` and `vision`/`language`/`connector` exclude each other: name one kind of base")
        if self.model is None and any(part is None for part in assembled):
            raise ValueError("name either `model`, or all of `vision`, `connector` and `language`")
        if self.model is not None and self.vision_layer is not None:
            raise ValueError("`vision_layer` belongs to an assembled base; a native `model` has its own")
        return self


class AdapterSection(Section):
    """What is trained, and how."""

    variant: Literal["plain", "rslora", "dora", "pissa", "olora", "loftq"] = Field(
        "plain",
        description="LoRA's scaling or initialisation; pissa, olora and loftq need `base.quantize: none` "
        "where PEFT cannot do them on quantised layers.",
    )
    language: Literal["lora", "frozen"] = Field("lora", description="Train LoRA in the language model, or leave it.")
    connector: Literal["full", "lora", "frozen"] = Field(
        "full",
        description="Train all of the connector in full precision, or LoRA in its linear layers (for servers such as "
        "vLLM, which refuse modules_to_save), or leave it as it is.",
    )
    vision: Literal["frozen", "lora", "full"] = Field(
        "frozen",
        description="Leave the vision tower as it is, or train LoRA in its linear layers, or all of it in full "
        "precision (stage 1 of mPLUG-Owl).",
    )
    r: PositiveInt = Field(16, le=MOST_RANK, description="LoRA rank.")
    alpha: PositiveInt = Field(32, le=10**6, description="LoRA scale: updates are multiplied by alpha / r.")
    dropout: Share = Field(0.05, description="LoRA dropout; off in preference objectives, as in TRL.")
    targets: tuple[str, ...] = Field(
        ("all-linear",),
        min_length=1,
        description="Name endings of the language model's linear layers, or all-linear; the word experts adds LoRA on "
        "the experts of a mixture-of-experts model. The output head is never a target.",
    )
    start_from: str | None = Field(
        None, description="Adapter folder or run whose parts this run starts with (stage 2)."
    )

    @model_validator(mode="after")
    def _something_is_trained(self) -> AdapterSection:
        if self.language == self.connector == self.vision == "frozen":
            raise ValueError("`language`, `connector` and `vision` are all frozen: nothing would be trained; train one")
        return self


class Source(Section):
    """One place rows come from."""

    path: str = Field(
        description="File (json, jsonl, csv, parquet), folder of shards or pictures, saved or Hub set, builtin:<name>."
    )
    format: Name | None = Field(None, description="Name of a file in qlmm/data/formats; unset: detected from rows.")
    split: str | None = Field(None, description="Split of a Hub or saved data set (default train).")
    image_root: str | None = Field(
        None, description="Folder that picture paths are relative to and may not leave; unset: the file's own folder."
    )
    weight: PositiveFloat = Field(1.0, description="How often each row is seen per epoch; 0.5: every other row.")
    limit: PositiveInt | None = Field(None, description="Take only the first so many rows.")


class DataSection(Section):
    """Rows to learn from."""

    sources: tuple[Source, ...] = Field(min_length=1, description="Where rows come from.")
    text_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        None, description="Share of text-only rows in the mixture (mPLUG-Owl stage 2: 0.5); unset: as the data are."
    )
    max_length: PositiveInt = Field(2048, description="Most tokens in a row, visual tokens included.")
    overlong: Literal["drop", "shorten"] = Field(
        "drop",
        description="Rows over max_length: drop and count them, or leave out their oldest turns; "
        "pictures and the last answer are never cut.",
    )
    max_bad_rows: BadRows = Field(
        0.0,
        description="0: any bad row stops the run, with all problems listed. From 1: so many rows may be bad; below 1: "
        "this share of all rows. They are left out and named in skipped.jsonl. A row whose picture is gone or damaged "
        "once the run has started counts, too; it is left out of the loss and named in run.json.",
    )
    max_pixels: PositiveInt | None = Field(
        None,
        description="Pictures are scaled to at most so many pixels before they become tokens, in whole tiles where the "
        "model cuts them; unset: the model's own.",
    )
    min_pixels: PositiveInt | None = Field(
        None,
        description="Pictures are scaled to at least so many pixels before they become tokens; unset: the model's own.",
    )
    max_tiles: PositiveInt | None = Field(
        None, description="Most tiles a picture is cut into, for models that tile; unset: the model's own."
    )
    max_frames: PositiveInt = Field(8, description="Most frames taken from a video, evenly spaced.")
    thinking: bool | None = Field(
        None,
        description="Whether the model is asked to think before it answers, where its chat template knows both ways; "
        "unset: if an answer has a thought (<think> … </think>). The adapter records it and is asked so.",
    )


class TrainingSection(Section):
    """How the parts are trained."""

    objective: ObjectiveName = Field(
        "sft",
        description="Name of a file in qlmm/training/objectives: sft learns answers; dpo, orpo and simpo learn "
        "which of two is better, the last two without a reference; kto learns from answers judged one by one, and "
        "from pairs.",
    )
    losses: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="Objective dpo: TRL's losses by name, each with its weight (MPO: sigmoid 0.8, bco_pair 0.2, sft "
        "1.0); unset: sigmoid. Objective kto: one of kto and apo_zero_unpaired; unset: kto. The others have one loss. "
        "Parameters (beta, label_smoothing, desirable_weight, simpo_gamma …) go to `extra`.",
    )
    epochs: PositiveFloat = Field(1.0, description="Passes over the mixture; ignored when `steps` is set.")
    steps: PositiveInt | None = Field(None, description="Optimiser steps.")
    batch_size: PositiveInt = Field(
        4,
        description="Rows per forward pass; fewer where memory does not suffice, with the same loss. Free on resume, "
        "like `accumulation`, while their product stays (not for losses that compare the rows of a batch).",
    )
    accumulation: PositiveInt = Field(1, description="Forward passes per optimiser step.")
    learning_rate: PositiveFloat = Field(2e-4, description="Peak rate of the LoRA weights.")
    connector_learning_rate: PositiveFloat = Field(2e-5, description="Peak rate of the connector.")
    vision_learning_rate: PositiveFloat = Field(2e-6, description="Peak rate of the vision tower, where it is trained.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Rate after warm-up.")
    warmup: Share = Field(0.03, description="Share of the steps over which rates rise from zero.")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="AdamW, or bitsandbytes' 8-bit forms of it (GPU)."
    )
    reuse: tuple[Literal["prefix", "reference", "vision"], ...] = Field(
        ("prefix", "reference", "vision"),
        description="What is computed once instead of several times: the prompt of a pair, the reference's "
        "log-probabilities of a row, a frozen tower's features of a picture. Losses are the same without.",
    )
    packing: bool = Field(
        True,
        description="Lay the rows of a pass end to end instead of padding them to the longest, where the model "
        "computes the same that way, which is tried before the first step. Losses are the same without.",
    )
    tokens_per_batch: PositiveInt | None = Field(
        None,
        description="Most tokens per forward pass, in place of `batch_size` rows: the rows of a step (batch_size × "
        "accumulation) are put together so that passes are full. Losses are the same; free on resume.",
    )
    memory: MemorySize | None = Field(
        None,
        description="What the run may take of the device's memory, such as 12GB. `batch_size`, `accumulation` (their "
        "product stays), `gradient_checkpointing` and `optimizer` are then chosen by a forecast when the run is first "
        "planned, and kept when it goes on; the plan says what. Unset: they stay as the recipe has them.",
    )
    gradient_checkpointing: bool = Field(True, description="Trade a third more compute for less activation memory.")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="cuda: refuse to start without a GPU.")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="Compute precision; auto: bf16 where the GPU has it, else fp16, and fp32 on CPU. "
        "Trained weights are always fp32.",
    )
    workers: FromZero = Field(0, description="Processes that decode pictures.")
    stall_minutes: PositiveFloat = Field(
        120.0,
        le=1e6,
        description="Longest wait for a forward pass or an evaluation; then the process ends and prints "
        "what every thread does.",
    )
    seed: FromZero = Field(0, lt=2**32, description="Seed of everything random.")
    log_every: PositiveInt = Field(10, description="Steps between log lines.")
    save_every: PositiveInt = Field(200, description="Steps between sealed checkpoints.")
    keep: PositiveInt = Field(2, description="Sealed checkpoints kept.")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="What a loss or gradient that is not finite does: stop ends the run; skip leaves the step out and "
        "reports it, and ends the run at the tenth in a row.",
    )
    extra: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of TRL's settings for the objective (SFTConfig, DPOConfig, KTOConfig, ORPOConfig, "
        "CPOConfig), by name; those qlmm sets itself are refused.",
    )

    @model_validator(mode="after")
    def _one_rule_for_passes(self) -> TrainingSection:
        if self.memory is not None and self.tokens_per_batch is not None:
            raise ValueError("`memory` decides how many rows a pass has: leave out either it or `tokens_per_batch`")
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimiser step."""
        return self.batch_size * self.accumulation

    @property
    def rows_at_once(self) -> int:
        """Rows that the trainer is given at once: a batch, or all of a step where tokens decide about passes."""
        return self.batch_size if self.tokens_per_batch is None else self.rows_per_step


class OutputSection(Section):
    """Where things go."""

    dir: str = Field(description="Run directory; created, or continued when it is this recipe's unfinished run.")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = Field(
        (), description="Trackers besides metrics.jsonl, which is always written."
    )


class EvaluationSection(Section):
    """Held-out rows, for the curve, the proof and the report."""

    sources: tuple[Source, ...] = Field(
        (),
        description="Held-out rows, without those trained on; unset: `rows` of data.sources are set aside.",
    )
    every: PositiveInt = Field(100, description="Steps between evaluations.")
    rows: PositiveInt = Field(64, description="Most held-out rows that are measured.")
    answers: FromZero = Field(8, description="Held-out pictures answered before and after training.")
    max_new_tokens: PositiveInt = Field(48, description="Longest answer in the report.")


class Recipe(Section):
    """A whole recipe, version 1."""

    version: Literal[1] = Field(description="Version of the recipe format: 1.")
    base: BaseSection = Field(description="The model to start from.")
    adapter: AdapterSection = Field(default_factory=AdapterSection, description="What is trained.")
    data: DataSection = Field(description="Rows to learn from.")
    training: TrainingSection = Field(default_factory=TrainingSection, description="How it is trained.")
    output: OutputSection = Field(description="Where things go.")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="Held-out rows.")
