"""How large pictures reach the model, in pixels and tiles."""
