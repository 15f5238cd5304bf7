"""The last promise of a run: read back in a fresh process, the adapter gives the same logits.

The trained model writes a few encoded rows and its logits to a probe file; this module, run as a program, loads the
adapter from its folder as any user would and compares.

Usage: ``python -m qlmm.artifacts.reload ADAPTER PROBE`` prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qlmm.artifacts.load import load
from qlmm.core.errors import RunError
from qlmm.model.losses import last_logits
from qlmm.model.precision import Precision, choose
from qlmm.training.facts import ReloadProof
from qlmm.training.fingerprint import base_digest

__all__ = ["prove_reload", "write_probe"]

# The same arithmetic on the same machine should give the same bits; these bounds only leave room for kernels that pick
# another order of summation. A lost connector changes logits by whole units.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}


def write_probe(model: nn.Module, batch: dict[str, torch.Tensor], precision: Precision, path: Path) -> None:
    """Store a batch and the model's logits of its last positions."""
    inputs = {name: tensor.contiguous() for name, tensor in batch.items() if name != "labels"}
    save_file({**inputs, "logits": _logits(model, inputs, precision)}, str(path))


@torch.no_grad()
def _logits(model: nn.Module, inputs: dict[str, torch.Tensor], precision: Precision) -> torch.Tensor:
    """Logits [rows, 4, vocabulary] of the last four positions, in fp32 on the host."""
    was_training = model.training
    model.eval()
    with precision.autocast():
        on_device = {name: tensor.to(precision.device) for name, tensor in inputs.items()}
        logits = last_logits(model, on_device, 4)
    model.train(was_training)
    return logits.float().cpu().contiguous()


def prove_reload(adapter: Path, probe: Path, precision: Precision) -> ReloadProof:
    """Load the adapter in a fresh process and compare logits.

    Raises:
        RunError: A010 when the fresh process could not load it at all.
    """
    command = [
        sys.executable,
        "-m",
        "qlmm.artifacts.reload",
        str(adapter),
        str(probe),
        precision.device,
        precision.name,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RunError.one("A010", f"a fresh process could not load the adapter: {reason[0]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    tolerance = TOLERANCE[precision.name]
    difference = float(answer["difference"])
    same = difference <= tolerance and answer["frozen_sha256"] == answer["recorded_sha256"]
    return ReloadProof(rows=answer["rows"], max_difference=difference, tolerance=tolerance, same=same)


def _main(adapter: str, probe: str, device: str, name: str) -> None:
    precision = choose("cpu" if device == "cpu" else "cuda", name)  # type: ignore[arg-type]  # from our own command line
    loaded = load(Path(adapter), precision=precision)
    tensors = load_file(probe)
    expected = tensors.pop("logits")
    found = _logits(loaded.model, tensors, precision)
    difference = (found - expected).abs().max()
    facts = {
        "rows": len(expected),
        # A NaN compares as "no difference" nowhere: it must fail the promise.
        "difference": float(difference) if torch.isfinite(difference) else float("inf"),
        "frozen_sha256": base_digest(loaded.model, bare=loaded.bare),
        "recorded_sha256": loaded.manifest.frozen_sha256,
    }
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
