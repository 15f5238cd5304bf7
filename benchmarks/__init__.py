"""Figures of the project, measured: each file is one benchmark, each result a committed file in ``results/``.

Usage: ``python -m benchmarks.startup`` from the root of a checkout
"""
