"""Vision tower, connector, language model and head: which modules belong to which part."""
