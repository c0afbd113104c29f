"""Pairs of blurred and sharp pictures, for training and for scoring."""
