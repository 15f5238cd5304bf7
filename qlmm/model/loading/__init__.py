"""From a recipe's ``base`` section to a loaded model and its processor."""
