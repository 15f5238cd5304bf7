"""GGUF files as llama.cpp reads them: a language file and a vision file, written and read back."""
