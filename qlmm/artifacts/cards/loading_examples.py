"""How an adapter is loaded, for its card: with plain PEFT, with qlmm, and with vLLM where that can.

Usage: ``text = usage(manifest, "user/name")``
"""

from __future__ import annotations

from qlmm.artifacts.adapter.manifest import Manifest

__all__ = ["usage"]

FOLDER = "PATH"
# What vLLM's --max-lora-rank takes.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def usage(manifest: Manifest, repo: str | None) -> str:
    """Markdown that shows how to load an adapter.

    Args:
        manifest: what the adapter is.
        repo: its id on the Hub; None for a folder on this machine, which is called PATH.
    """
    ours = f"With qlmm:\n\n{_ours(repo)}"
    if manifest.base.kind == "assembled":
        return f"Only qlmm can load it: its base is put together from parts.\n\n{ours}"
    peft = f"With plain PEFT, without qlmm:\n\n{_peft(manifest, repo or FOLDER)}"
    return f"{peft}\n\n{ours}\n\n{_vllm(manifest, repo or FOLDER)}"


def _ours(repo: str | None) -> str:
    folder = repo.partition("/")[2] if repo else FOLDER
    python = f'```python\nimport qlmm\n\nloaded = qlmm.load("{folder}")  # model, processor, manifest\n```'
    fetch = f"qlmm pull {repo}\n" if repo else ""
    return f'```bash\n{fetch}qlmm ask {folder} --image picture.png "What is this?"\n```\n\n{python}'


def _peft(manifest: Manifest, place: str) -> str:
    model, _, revision = _model(manifest).partition("@")
    pinned = f', revision="{revision}"' if revision else ""
    return (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f'base = AutoModelForImageTextToText.from_pretrained("{model}"{pinned})\n'
        f'model = PeftModel.from_pretrained(base, "{place}")\n'
        f'processor = AutoProcessor.from_pretrained("{place}")\n```'
    )


def _vllm(manifest: Manifest, place: str) -> str:
    """The command, or why there is none."""
    adapter = manifest.recipe.adapter
    whole = [part for part, how in (("connector", adapter.connector), ("vision", adapter.vision)) if how == "full"]
    if whole or adapter.start_from is not None:
        what = f"the whole {' and '.join(whole)} was trained" if whole else "it carries parts of an earlier run"
        return (
            f"vLLM refuses this adapter, because {what}: such weights lie in `modules_to_save`, which it does not "
            "take. Merge the adapter into its base first."
        )
    if adapter.variant not in ("plain", "rslora"):
        return f"vLLM serves plain LoRA only; this adapter is {adapter.variant}. Merge it into its base first."
    parts = [part for part, how in (("connector", adapter.connector), ("vision", adapter.vision)) if how == "lora"]
    if parts:
        return (
            f"vLLM applies LoRA of the language model; whether it applies that of the {' and '.join(parts)} depends on "
            "its version and on the model. Merge the adapter into its base to be sure."
        )
    rank = next((rank for rank in RANKS if rank >= adapter.r), None)
    if rank is None:
        return f"vLLM takes ranks up to {RANKS[-1]}; this adapter has {adapter.r}. Merge it into its base first."
    model, _, revision = _model(manifest).partition("@")
    pinned = f" --revision {revision}" if revision else ""
    command = f"vllm serve {model}{pinned} --enable-lora --max-lora-rank {rank} --lora-modules adapter={place}"
    return f"With vLLM, which takes LoRA of the language model (not tried by the run):\n\n```bash\n{command}\n```"


def _model(manifest: Manifest) -> str:
    return manifest.recipe.base.model or ""
