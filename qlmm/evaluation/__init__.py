"""What a model does on held-out rows, in numbers and pictures."""
