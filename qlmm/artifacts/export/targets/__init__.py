"""What an adapter can be exported to: one file per target, named by the word after ``qlmm export --to``."""
