"""The vision file (mmproj): tower and connector under llama.cpp's names, with what its picture code needs to know.

Key names and conventions are those of llama.cpp's ``tools/mtmd`` (clip-impl.h, clip.cpp, models/llava.cpp) and of its
converter (conversion/base.py, conversion/smolvlm.py), https://github.com/ggml-org/llama.cpp.

Usage: ``planned = plan_vision(shape, processor, "f16"); planned.write(path, model)``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from qlmm.artifacts.export.llamacpp.file import GgufFile, Outtype
from qlmm.core.errors import ModelError
from qlmm.model.parts.split import split

if TYPE_CHECKING:
    import gguf

__all__ = ["VISION", "plan_vision"]

TOWERS = {"clip_vision_model": "default", "siglip_vision_model": "full"}
# What llama.cpp calls the activations in a tower; it takes quick_gelu by default.
USE_GELU, USE_SILU = "clip.use_gelu", "clip.use_silu"
ACTIVATIONS = {"quick_gelu": None, "gelu": USE_GELU, "gelu_pytorch_tanh": USE_GELU, "silu": USE_SILU}


def plan_vision(shape: PreTrainedModel, processor: ProcessorMixin, outtype: Outtype) -> GgufFile:
    """Find names for every weight that llama.cpp uses of a tower and a connector; E033 where it is not known to."""
    plan = VISION.get(shape.config.model_type)
    if plan is None:
        raise _unknown(f"the base is {type(shape).__name__}")
    return plan(shape, processor, outtype)


def _llava(shape: PreTrainedModel, processor: ProcessorMixin, outtype: Outtype) -> GgufFile:
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
    names: dict[str, str] = {}
    for ours, theirs in ((f"{projector}.linear_1", "mm.0"), (f"{projector}.linear_2", "mm.2")):
        names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    names |= _tower(shape, f"{vision}.", "vision_tower.vision_model.", taken, post_norm=False)

    def fill(writer: gguf.GGUFWriter) -> None:
        _settings(writer, shape, processor, "mlp", blocks=taken)
        writer.add_bool("clip.has_llava_projector", True)
        # Blocks counted from the embeddings, which are 0; the post-norm is not applied, and not written.
        writer.add_array("clip.vision.feature_layer", [taken])

    drops = (PADDED, *([CLASS_LAST] if tower.model_type == "clip_vision_model" else []), *_approximated(tower))
    return GgufFile("clip", outtype, names, fill, drops)


def _idefics3(shape: PreTrainedModel, processor: ProcessorMixin, outtype: Outtype) -> GgufFile:
    tower = shape.config.vision_config
    names = _tower(shape, "model.vision_model.", "model.vision_model.", tower.num_hidden_layers, post_norm=True)
    names["model.connector.modality_projection.proj.weight"] = "mm.model.fc.weight"

    def fill(writer: gguf.GGUFWriter) -> None:
        _settings(writer, shape, processor, "idefics3", blocks=tower.num_hidden_layers)
        writer.add_vision_projector_scale_factor(shape.config.scale_factor)
        writer.add_vision_preproc_image_size(int(processor.image_processor.size["longest_edge"]))

    return GgufFile("clip", outtype, names, fill, (CUT, *_approximated(tower)))


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
VISION: dict[str, Callable[[PreTrainedModel, ProcessorMixin, Outtype], GgufFile]] = {
    "llava": _llava,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}


def _approximated(tower: PreTrainedConfig) -> tuple[str, ...]:
    tanh = "llama.cpp computes GELU by its tanh form, which differs in the fourth digit"
    return (tanh,) if tower.hidden_act == "gelu" else ()


def _tower(shape: PreTrainedModel, prefix: str, theirs: str, blocks: int, *, post_norm: bool) -> dict[str, str]:
    """Names of the tower's weights, as the ``gguf`` package knows them; blocks nobody reads are left out."""
    import gguf

    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, blocks)
    names = {}
    for ours in shape.state_dict():
        own = ours.removeprefix(prefix).removeprefix("vision_model.")
        unread = ("head.",) if post_norm else ("head.", "post_layernorm.")
        beyond = own.startswith("encoder.layers.") and int(own.split(".")[2]) >= blocks
        if not ours.startswith(prefix) or own.startswith(unread) or beyond:
            continue
        name = known.get_name(f"{theirs}{own}", try_suffixes=(".weight", ".bias"))
        if name is None:
            raise _unknown(f"llama.cpp's tower has no weight for {ours}")
        names[ours] = name
    return names


def _settings(
    writer: gguf.GGUFWriter, shape: PreTrainedModel, processor: ProcessorMixin, projector: str, *, blocks: int
) -> None:
    """What every vision file has."""
    tower, pictures = shape.config.vision_config, processor.image_processor
    if tower.hidden_act not in ACTIVATIONS:
        raise _unknown(f"the tower's activation is {tower.hidden_act}")
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
    if (activation := ACTIVATIONS[tower.hidden_act]) is not None:
        writer.add_bool(activation, True)


def _unknown(why: str) -> ModelError:
    return ModelError.one(
        "E033",
        f"{why}, which qlmm cannot write as a vision file of llama.cpp",
        help=f"known: {', '.join(VISION)}; LLaVA with {' or '.join(TOWERS)} and an MLP connector. For another one give "
        "--converter with the path of llama.cpp's convert_hf_to_gguf.py, or export --to hf",
    )
