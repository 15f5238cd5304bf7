"""Pictures and videos: which file a row may name, and its bytes as RGB."""
