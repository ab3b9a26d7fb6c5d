"""Evaluation: free decoding of a split, its scores, and comparisons of runs."""
