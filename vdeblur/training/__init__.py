"""Training: pairs from sharp photographs, the loop, the scores. Needs the `train` extra."""
