"""How an adapter is loaded, for its card: with plain PEFT, with qlmm, and with vLLM where that can.

Usage: ``text = usage(manifest, "user/name")``
"""

from __future__ import annotations

from json import dumps

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.core.command_line import line, ours
from qlmm.model.loading.identity import PartIdentity
from qlmm.model.peft.vllm_lora import max_lora_rank, refused_lora, trained_whole
from qlmm.recipe.schema import AdapterSection

__all__ = ["usage"]

FOLDER = "PATH"


def usage(manifest: Manifest, repo: str | None) -> str:
    """Markdown that shows how to load an adapter, by its id on the Hub or, without one, as the folder PATH."""
    ours, base = f"With qlmm:\n\n{_ours(repo)}", manifest.base.whole
    if base is None:
        return f"Only qlmm can load it: its base is put together from parts.\n\n{ours}"
    peft = f"With plain PEFT, without qlmm:\n\n{_peft(base, repo or FOLDER)}"
    return f"{peft}\n\n{ours}\n\n{_vllm(base, manifest.recipe.adapter, repo or FOLDER)}"


def _ours(repo: str | None) -> str:
    folder = repo.partition("/")[2] if repo else FOLDER
    python = f"```python\nimport qlmm\n\nloaded = qlmm.load({dumps(folder)})  # model, processor, manifest\n```"
    fetch = f"{ours('pull', repo)}\n" if repo else ""
    ask = ours("ask", folder, "What is this?", image="picture.png")
    return f"```bash\n{fetch}{ask}\n```\n\n{python}"


def _peft(base: PartIdentity, place: str) -> str:
    pinned = f", revision={dumps(base.revision)}" if base.revision else ""
    return (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f"base = AutoModelForImageTextToText.from_pretrained({dumps(base.name)}{pinned})\n"
        f"model = PeftModel.from_pretrained(base, {dumps(place)})\n"
        f"processor = AutoProcessor.from_pretrained({dumps(place)})\n```"
    )


def _vllm(base: PartIdentity, adapter: AdapterSection, place: str) -> str:
    """The command, or why there is none."""
    whole = trained_whole(adapter)
    if whole or adapter.start_from is not None:
        what = f"the whole {' and '.join(whole)} was trained" if whole else "it carries parts of an earlier run"
        return (
            f"vLLM refuses this adapter, because {what}: such weights lie in `modules_to_save`, which it does not "
            "take. Merge the adapter into its base first."
        )
    if (why := refused_lora(adapter)) is not None:
        return f"{why[0].upper()}{why[1:]}. Merge it into its base first."
    parts = [part for part, how in (("connector", adapter.connector), ("vision", adapter.vision)) if how == "lora"]
    if parts:
        return (
            f"vLLM applies LoRA of the language model; whether it applies that of the {' and '.join(parts)} depends on "
            "its version and on the model. Merge the adapter into its base to be sure."
        )
    pinned = ("--revision", base.revision) if base.revision else ()
    rank, named = max_lora_rank(adapter.r), f"adapter={place}"
    command = line(
        "vllm", "serve", base.name, *pinned, "--enable-lora", "--max-lora-rank", rank, "--lora-modules", named
    )
    return f"With vLLM, which takes LoRA of the language model (not tried by the run):\n\n```bash\n{command}\n```"
