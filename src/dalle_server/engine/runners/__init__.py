"""Runners do the arithmetic: torch (reference and GPU) and OpenVINO (CPU). Each imports its library itself."""
