"""Samples -> batches: which rows are held out, in which order rows are seen, how they are stacked."""
