"""Several adapters of one base made into one."""
