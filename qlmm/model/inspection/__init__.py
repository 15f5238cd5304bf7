"""What qlmm makes of a model, from its configuration alone."""
