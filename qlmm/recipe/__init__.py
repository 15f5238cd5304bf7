"""What the user asked for: YAML -> ``Recipe``, with the place of every key. Only pydantic and PyYAML are needed.

Usage: ``from qlmm.recipe.load import load_recipe``
"""
