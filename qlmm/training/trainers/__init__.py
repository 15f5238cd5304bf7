"""One file per objective; the file name is the recipe's `training.objective`."""
