"""Evaluation: free decoding of a split, its scores, and the comparison of runs."""
