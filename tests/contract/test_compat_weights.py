"""What qlmm relies on in private names for the weights of a checkpoint: its headers are read without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from qlmm.compat import transformers_models


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_headers_of_a_checkpoints_file_are_read_without_its_weights(name: str, tmp_path: Path) -> None:
    state, file = {"up.weight": torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / name
    if file.suffix == ".bin":
        torch.save(state, file)
    else:
        save_file(state, file)
    (found,) = transformers_models.load_state_dict(str(file), map_location="meta").values()
    assert (found.device.type, found.shape, found.dtype) == ("meta", (2, 3), torch.bfloat16)


def test_a_file_that_was_cut_is_not_read(tmp_path: Path) -> None:
    save_file({"up.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(SafetensorError):
        transformers_models.load_state_dict(str(tmp_path / "model.safetensors"), map_location="meta")
