"""A vision tower, a connector and a language model put together in LLaVA's class layout.

Usage: ``from qlmm.model.assembled.build import assemble``
"""
