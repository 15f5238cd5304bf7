"""The vision file (mmproj): tower and connector under llama.cpp's names, with what its picture code needs to know.

Key names and conventions are those of llama.cpp's ``tools/mtmd`` (clip-impl.h, clip.cpp, models/llava.cpp) and of its
converter (conversion/base.py, conversion/smolvlm.py), https://github.com/ggml-org/llama.cpp.

Usage: ``plan = plan_vision(shape, processor, "f16"); plan.write(path, model)``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from qlmm.artifacts.export.llamacpp.file import Outtype, Stored, storage, write_gguf
from qlmm.artifacts.export.llamacpp.language import FILE_TYPES
from qlmm.core.errors import ModelError
from qlmm.model.parts.split import split

if TYPE_CHECKING:
    import gguf

__all__ = ["VISION", "Vision", "plan_vision"]

TOWERS = {"clip_vision_model": "default", "siglip_vision_model": "full"}
# What llama.cpp calls the activations in a tower; it takes quick_gelu where nothing is said.
ACTIVATIONS = {"quick_gelu": None, "gelu": "use_gelu", "gelu_pytorch_tanh": "use_gelu", "silu": "use_silu"}
Fill = Callable[["gguf.GGUFWriter"], None]


@dataclass(frozen=True, slots=True)
class Vision:
    """All that is known of the file before any weight is read."""

    projector: str
    names: Mapping[str, str]
    outtype: Outtype
    fill: Fill
    drops: tuple[str, ...]

    def tensors(self, model: PreTrainedModel) -> list[Stored]:
        """What goes into the file, from a model with its weights (or without, to plan)."""
        weights = model.state_dict()
        return [self._stored(theirs, weights[ours]) for ours, theirs in self.names.items()]

    def _stored(self, name: str, weight: Tensor) -> Stored:
        shape = tuple(weight.shape)
        return Stored(name, shape, storage(name, shape, self.outtype), lambda: weight)

    def write(self, path: Path, model: PreTrainedModel) -> list[Stored]:
        """Write the file; what was written."""
        tensors = self.tensors(model)
        write_gguf(path, "clip", tensors, self.fill)
        return tensors


def plan_vision(shape: PreTrainedModel, processor: ProcessorMixin, outtype: Outtype) -> Vision:
    """Find names for every weight that llama.cpp uses of a tower and a connector.

    Args:
        shape: the whole model; the meta device is enough.
        processor: as it was trained with.
        outtype: how weights are stored.

    Raises:
        ModelError: E033 for a tower or a connector that is not known to work.
    """
    plan = VISION.get(shape.config.model_type)
    if plan is None:
        raise _unknown(f"the base is {type(shape).__name__}")
    return plan(shape, processor, outtype)


def _llava(shape: PreTrainedModel, processor: ProcessorMixin, outtype: Outtype) -> Vision:
    config, tower = shape.config, shape.config.vision_config
    if tower.model_type not in TOWERS:
        raise _unknown(f"the tower is of kind {tower.model_type}")
    if config.projector_hidden_act != "gelu":
        raise _unknown(f"the connector has {config.projector_hidden_act} where llama.cpp's LLaVA has gelu")
    if config.vision_feature_select_strategy != TOWERS[tower.model_type]:
        raise _unknown(f"the connector takes the tower's tokens by {config.vision_feature_select_strategy}")
    if not isinstance(config.vision_feature_layer, int) or not config.multimodal_projector_bias:
        raise _unknown("the connector takes several layers of the tower, or has no biases")
    layers, wanted = tower.num_hidden_layers, config.vision_feature_layer
    taken = wanted if wanted >= 0 else layers + 1 + wanted
    parts = split(shape)
    (vision,), (projector,) = parts.vision, parts.connector
    names = {
        f"{projector}.linear_{ours}.{kind}": f"mm.{theirs}.{kind}"
        for ours, theirs in ((1, 0), (2, 2))
        for kind in ("weight", "bias")
    }
    names |= _tower(shape, f"{vision}.", "vision_tower.vision_model.", taken, post_norm=False)

    def fill(writer: gguf.GGUFWriter) -> None:
        _settings(writer, shape, processor, "mlp", blocks=taken, outtype=outtype)
        writer.add_bool("clip.has_llava_projector", True)
        # Blocks counted from the embeddings, which are 0; the post-norm is not applied, and not written.
        writer.add_array("clip.vision.feature_layer", [taken])

    drops = (PADDED, *([CLASS_LAST] if tower.model_type == "clip_vision_model" else []), *_approximated(tower))
    return Vision("mlp", names, outtype, fill, drops)


def _idefics3(shape: PreTrainedModel, processor: ProcessorMixin, outtype: Outtype) -> Vision:
    tower = shape.config.vision_config
    names = _tower(shape, "model.vision_model.", "model.vision_model.", tower.num_hidden_layers, post_norm=True)
    names["model.connector.modality_projection.proj.weight"] = "mm.model.fc.weight"

    def fill(writer: gguf.GGUFWriter) -> None:
        _settings(writer, shape, processor, "idefics3", blocks=tower.num_hidden_layers, outtype=outtype)
        writer.add_vision_projector_scale_factor(shape.config.scale_factor)
        writer.add_vision_preproc_image_size(int(processor.image_processor.size["longest_edge"]))

    return Vision("idefics3", names, outtype, fill, (CUT, *_approximated(tower)))


PADDED = (
    "llama.cpp prepares pictures with its own code: it pads them to a square where the processor crops, so answers to "
    "pictures that are not square differ"
)
# https://github.com/ggml-org/llama.cpp/pull/25844, found again with a build of October 2026.
CLASS_LAST = (
    "builds of llama.cpp since May 2025 put the class token of a CLIP tower behind its patches, and so read every "
    "picture wrongly; the file is right, and builds that put it first read it right (docs/export.md)"
)
CUT = "llama.cpp resizes and cuts pictures with its own code, which differs from the processor's in the last digits"
VISION: dict[str, Callable[[PreTrainedModel, ProcessorMixin, Outtype], Vision]] = {
    "llava": _llava,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}


def _approximated(tower: PreTrainedConfig) -> tuple[str, ...]:
    """What the activations lose; llama.cpp has the tanh form of GELU only here."""
    said = "llama.cpp computes GELU by its tanh form, which differs in the fourth digit"
    return (said,) if tower.hidden_act == "gelu" else ()


def _tower(shape: PreTrainedModel, prefix: str, theirs: str, blocks: int, *, post_norm: bool) -> dict[str, str]:
    """Names of the tower's weights, as the ``gguf`` package knows them; blocks nobody reads are left out."""
    import gguf

    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, blocks)
    names = {}
    for ours in shape.state_dict():
        own = ours.removeprefix(prefix).removeprefix("vision_model.")
        if not ours.startswith(prefix) or own.startswith("head."):
            continue
        if own.startswith("post_layernorm.") and not post_norm:
            continue
        if own.startswith("encoder.layers.") and int(own.split(".")[2]) >= blocks:
            continue
        name = known.get_name(f"{theirs}{own}", try_suffixes=(".weight", ".bias"))
        if name is None:
            raise _unknown(f"llama.cpp's tower has no weight for {ours}")
        names[ours] = name
    return names


def _settings(
    writer: gguf.GGUFWriter,
    shape: PreTrainedModel,
    processor: ProcessorMixin,
    projector: str,
    *,
    blocks: int,
    outtype: Outtype,
) -> None:
    """What every vision file says."""
    import gguf

    tower, pictures = shape.config.vision_config, processor.image_processor
    if tower.hidden_act not in ACTIVATIONS:
        raise _unknown(f"the tower's activation is {tower.hidden_act}")
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[outtype]])
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(projector)
    writer.add_vision_projection_dim(shape.get_input_embeddings().weight.shape[1])
    writer.add_vision_image_size(tower.image_size)
    writer.add_vision_patch_size(tower.patch_size)
    writer.add_vision_embedding_length(tower.hidden_size)
    writer.add_vision_feed_forward_length(tower.intermediate_size)
    writer.add_vision_block_count(blocks)
    writer.add_vision_head_count(tower.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(tower.layer_norm_eps)
    writer.add_vision_image_mean([float(value) for value in pictures.image_mean])
    writer.add_vision_image_std([float(value) for value in pictures.image_std])
    use = {"use_gelu": writer.add_vision_use_gelu, "use_silu": writer.add_vision_use_silu}
    if (activation := ACTIVATIONS[tower.hidden_act]) is not None:
        use[activation](True)


def _unknown(why: str) -> ModelError:
    return ModelError.one(
        "E033",
        f"{why}, which qlmm cannot write as a vision file of llama.cpp",
        help=f"known: {', '.join(VISION)}; LLaVA with {' or '.join(TOWERS)} and an MLP connector. For another one give "
        "--converter with the path of llama.cpp's convert_hf_to_gguf.py, or export --to hf",
    )
