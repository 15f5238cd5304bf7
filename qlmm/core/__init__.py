"""What every layer needs and no layer owns: errors, files, seals, names, environment, events. No torch here.

Usage: ``from qlmm.core.errors import QlmmError``
"""
