"""The last promise of a run: read back in a fresh process, the adapter gives the same logits.

Usage: ``python -m qlmm.artifacts.adapter.reload ADAPTER DEVICE PRECISION`` prints one line of JSON.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from qlmm.artifacts.adapter.load import load
from qlmm.core.errors import RunError
from qlmm.model.numerics.precision import Precision, choose
from qlmm.proof.fingerprint import base_digest
from qlmm.proof.probe import difference, probe_rows, tolerance
from qlmm.proof.records import ReloadProof

__all__ = ["prove_reload"]


def prove_reload(adapter: Path, precision: Precision) -> ReloadProof:
    """Load the adapter in a fresh process, as any user would, and compare logits of its probe's rows.

    Raises:
        RunError: A010 when the fresh process could not load it at all.
    """
    command = [sys.executable, "-m", "qlmm.artifacts.adapter.reload", str(adapter), precision.device, precision.name]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunError.one("A010", f"a fresh process could not load the adapter: {_reason(done.stderr)}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    most, apart = tolerance(adapter, precision), float(answer["difference"])
    same = apart <= most and answer["frozen_sha256"] == answer["recorded_sha256"]
    return ReloadProof(rows=answer["rows"], max_difference=apart, tolerance=most, same=same)


def _reason(stderr: str) -> str:
    """What went wrong, in one line: an error of ours, which more lines follow, or the end of a traceback."""
    ours = re.findall(r"^.*?(error\[\w+\]: .*)$", stderr, re.MULTILINE)
    lines: list[str] = ours or stderr.strip().splitlines() or ["no message"]
    return lines[-1]


def _main(adapter: str, device: str, name: str) -> None:
    precision = choose("cpu" if device == "cpu" else "cuda", name)  # type: ignore[arg-type]  # from our own command line
    folder = Path(adapter)
    loaded = load(folder, precision=precision)
    facts = {
        "rows": len(probe_rows(folder)),
        "difference": difference(folder, loaded.model, loaded.encoder, precision),
        "frozen_sha256": base_digest(loaded.model, bare=loaded.bare),
        "recorded_sha256": loaded.manifest.frozen_sha256,
    }
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
