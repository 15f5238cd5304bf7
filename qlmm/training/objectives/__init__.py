"""Training objectives, one per file: the file name is the recipe's ``training.objective``."""
