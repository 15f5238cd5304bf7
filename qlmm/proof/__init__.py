"""What a run proves, and what it proves it with."""
