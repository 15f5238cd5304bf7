"""What a model says: one answer, or several samples."""
