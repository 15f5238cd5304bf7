"""The adapter: where LoRA goes, what is trained whole, and how a run starts from an earlier adapter."""
