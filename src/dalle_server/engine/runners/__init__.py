"""Runners do the arithmetic: torch (reference and GPU) and compiled C (CPU)."""
