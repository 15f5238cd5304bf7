"""What an adapter can be exported to: one file per target, the file name is the word after ``qlmm export --to``.

Usage: ``qlmm.artifacts.export.export.target("peft")``
"""
