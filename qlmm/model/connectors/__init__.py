"""What stands between vision tower and language model: one connector a file, the file name is its name in a recipe.

Usage: ``qlmm.model.contract.connector("abstractor")``
"""
