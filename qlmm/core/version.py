"""The version, where every layer can read it; ``pyproject.toml`` takes it from here.

Usage: ``from qlmm.core.version import __version__``
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
