"""Weights files: found, checked, read into networks, and written."""
