"""The command line as a module, for ``accelerate launch -m qlmm`` and for environments without scripts on the path.

Usage: ``python -m qlmm finetune quickstart``
"""

from __future__ import annotations

from qlmm.cli.app import main

if __name__ == "__main__":
    main()
