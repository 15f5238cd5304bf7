"""Chat templates are programs of somebody else: what they do wrong, or too much of, is one kind of error.

The sandbox keeps a template from this machine's files; it sets no limit to loops and to the length of texts.

Usage: ``with guarded_template(): text = processor.apply_chat_template(messages)``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import TemplateError

from qlmm.core.limited import TooMuch, limited

__all__ = ["guarded_template"]

# A template takes milliseconds, and a few megabytes for the longest of rows.
SECONDS, SIZE = 10, 1 << 30


@contextmanager
def guarded_template() -> Iterator[None]:
    """Run a template within limits.

    Raises:
        TemplateError: why it gave no text.
    """
    try:
        with limited(seconds=SECONDS, size=SIZE):
            yield
    except TooMuch as error:
        raise TemplateError(str(error)) from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error
