"""What accelerate takes for a lack of memory.

* ``should_reduce_batch_size``: whether an error is that of a device or an allocator without memory. Read from
  accelerate 1.15. Public instead: ``find_executable_batch_size``, which begins a run anew.

Usage: ``should_reduce_batch_size(error)``
"""

from __future__ import annotations

from accelerate.utils.memory import should_reduce_batch_size

__all__ = ["should_reduce_batch_size"]
