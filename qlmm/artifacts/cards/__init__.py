"""Model cards: the README of everything qlmm writes."""
