"""Vision towers that transformers lacks: one a file, the file name is the ``model_type`` of their configuration.

Usage: ``qlmm.model.contract.own_tower("efficientnet_lite0")``
"""
