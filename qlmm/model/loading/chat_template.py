"""Chat templates that a recipe can name: those that ship with qlmm, and files of its own.

Usage: ``source = chat_template("vicuna")``
"""

from __future__ import annotations

from pathlib import Path

from qlmm.core.errors import ModelError
from qlmm.core.naming import close

__all__ = ["chat_template", "template_names"]

_TEMPLATES = Path(__file__).parents[1] / "templates"


def template_names() -> list[str]:
    """The packaged chat templates."""
    return sorted(path.stem for path in _TEMPLATES.glob("*.jinja"))


def chat_template(name: str | None) -> str | None:
    """Jinja source of a packaged template or a ``.jinja`` file, None for None; raises M040 when there is none."""
    if name is None:
        return None
    path = Path(name) if name.endswith(".jinja") else _TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        raise ModelError.one(
            "M040", f"there is no template `{name}`", key="base.chat_template", help=close(name, template_names())
        )
    return path.read_text("utf-8")
