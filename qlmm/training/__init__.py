"""Model and rows -> a sealed run directory, and the material of the run proof."""
