"""Weights and pictures that ship inside registry packages, one folder of ``QLMM_HOME`` a file."""
