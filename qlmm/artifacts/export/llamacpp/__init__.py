"""GGUF files as llama.cpp reads them: a language file and a vision file, written and read back.

Usage: ``language = plan_language(model, folder, "f16"); language.write(path, model)``
"""
