"""``qlmm doctor``: what is installed, what the machine has, what 4-bit does here, which variables are read.

Everything is measured: a small matrix is really quantised. Problems are warnings, and the exit code is 0.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NotRequired, TypedDict

from qlmm.cli.arguments import AsJson
from qlmm.cli.output.console import out
from qlmm.core import env
from qlmm.core.secrets import redact
from qlmm.core.units import memory

__all__ = ["doctor", "examine", "four_bit"]

EXAMPLE = "Example: qlmm doctor --json"
PACKAGES = (
    *("qlmm", "torch", "transformers", "trl", "peft"),
    *("bitsandbytes", "accelerate", "datasets", "safetensors", "torchvision"),
)
OPTIONAL = ("torchvision",)
MISSING = "not installed"
SMALL_DISK_BYTES = 5 * 1024**3
# A Gaussian matrix comes back from NF4 with about 9 % error (norm of the difference over norm);
# much more means that the kernels of this machine are broken, which would otherwise show as a bad loss only.
MOST_NF4_ERROR = 0.12
# What a broken installation of bitsandbytes was seen to raise, on import and on use.
BROKEN = (ImportError, RuntimeError, OSError, AttributeError, TypeError, ValueError, NotImplementedError)


class Gpu(TypedDict):
    """One CUDA device, its memory in bytes."""

    name: str
    memory: int
    free: int
    bf16: bool


class Devices(TypedDict):
    """What computes here: of the processor cores, threads, memory and free memory in bytes."""

    cpu: dict[str, int]
    cuda: list[Gpu]
    cuda_build: str | None


class Disk(TypedDict):
    """A folder, and the free bytes of its disk."""

    path: str
    free: int


class FourBit(TypedDict):
    """Whether NF4 works: the error of installing or running it, or what a matrix lost by it."""

    device: str
    works: bool
    error: NotRequired[str]
    relative_error: NotRequired[float]
    bits: NotRequired[float]


class Facts(TypedDict):
    """All that is measured."""

    versions: dict[str, str]
    devices: Devices
    four_bit: FourBit
    packaged: dict[str, bool]
    disk: dict[str, Disk]
    environment: dict[str, str]
    warnings: list[str]


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine has and can do."""
    facts = examine()
    if as_json:
        out.json(facts)
        return
    from qlmm.cli.output.screens import facts_screen

    out.screen(facts_screen(_sections(facts)))
    for warning in facts["warnings"]:
        out.warn(warning)


def examine() -> Facts:
    """Measure this machine."""
    from qlmm.builtin import registry as builtin
    from qlmm.core import files

    places = {"here": Path.cwd(), "QLMM_HOME": env.home()}
    facts = Facts(
        versions=_versions(),
        devices=_devices(),
        four_bit=four_bit(),
        packaged={name: builtin.present(name) for name in builtin.names()},
        disk={name: {"path": str(path), "free": files.free_bytes(path)} for name, path in places.items()},
        environment={variable.name: redact(env.shown(variable)) for variable in env.VARIABLES},
        warnings=[],
    )
    facts["warnings"] = list(_warnings(facts))
    return facts


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = MISSING
    return found


def _devices() -> Devices:
    """Processor cores usable by this process, main memory, and every CUDA GPU with what it can do."""
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    main = psutil.virtual_memory()
    gpus: list[Gpu] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        gpus.append({"name": torch.cuda.get_device_name(index), "memory": total, "free": free, "bf16": bf16})
    cpu = {"cores": cores, "threads": torch.get_num_threads(), "memory": main.total, "free": main.available}
    return {"cpu": cpu, "cuda": gpus, "cuda_build": torch.version.cuda}


def four_bit() -> FourBit:
    """Whether NF4 works here: a 256 x 256 Gaussian matrix is quantised and restored on the device runs would use."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from bitsandbytes import functional

        weights = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).to(device)
        packed, state = functional.quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
        restored = functional.dequantize_4bit(packed, state)
    except BROKEN as error:
        return {"device": device, "works": False, "error": f"{type(error).__name__}: {error}"}
    relative = float((restored - weights).norm() / weights.norm())
    bits = 8 * packed.numel() * packed.element_size() / weights.numel()
    return {"device": device, "works": relative <= MOST_NF4_ERROR, "relative_error": relative, "bits": bits}


def _warnings(facts: Facts) -> Iterable[str]:
    for package, version in facts["versions"].items():
        if version == MISSING and package not in OPTIONAL:
            yield f"{package} is not installed: pip install {package}"
    if not facts["devices"]["cuda"]:
        build = facts["devices"]["cuda_build"]
        why = "PyTorch was built without CUDA" if build is None else f"PyTorch (CUDA {build}) finds no driver or device"
        yield f"no CUDA GPU: {why}; runs use the processor"
    if "error" in facts["four_bit"]:
        yield f"4-bit does not work here ({facts['four_bit']['error']}): set base.quantize=none"
    elif not facts["four_bit"]["works"]:
        yield f"4-bit is wrong here: NF4 restores weights with {facts['four_bit']['relative_error']:.0%} error"
    for place in facts["disk"].values():
        if place["free"] < SMALL_DISK_BYTES:
            yield f"only {memory(place['free'])} free at {place['path']}"


def _sections(facts: Facts) -> dict[str, list[tuple[str, str]]]:
    """The facts as titled name-value lists for people."""
    cpu = facts["devices"]["cpu"]
    cores = f"{cpu['cores']} cores, {memory(cpu['memory'])} memory ({memory(cpu['free'])} free), computes in fp32"
    gpus = [(f"cuda:{index}", _gpu(gpu)) for index, gpu in enumerate(facts["devices"]["cuda"])]
    disks = [(name, f"{memory(place['free'])} free, {place['path']}") for name, place in facts["disk"].items()]
    weights = [(name, "present" if there else "not fetched yet") for name, there in facts["packaged"].items()]
    return {
        "versions": list(facts["versions"].items()),
        "devices": [("cpu", cores), *(gpus or [("cuda", "none")])],
        "4-bit": [("NF4", _nf4(facts["four_bit"]))],
        "packaged weights and pictures": weights,
        "disk": disks,
        "environment variables read": list(facts["environment"].items()),
    }


def _gpu(gpu: Gpu) -> str:
    precision = "bf16" if gpu["bf16"] else "fp16, no bf16"
    return f"{gpu['name']}, {memory(gpu['memory'])} ({memory(gpu['free'])} free), {precision}"


def _nf4(found: FourBit) -> str:
    if "error" in found:
        return f"does not work on {found['device']}: {found['error']}"
    verdict = "works" if found["works"] else "is WRONG"
    return f"{verdict} on {found['device']} (bitsandbytes), {found['relative_error']:.1%} error on a Gaussian matrix"
