"""One command per file, with its options."""
