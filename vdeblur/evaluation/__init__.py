"""Picture quality: scores on pairs, and comparisons of videos."""
