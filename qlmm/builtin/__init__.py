"""Weights and pictures that ship inside registry packages, by the name a recipe gives them: ``builtin:emoji``."""
