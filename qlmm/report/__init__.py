"""A run as curves and as one HTML page."""
