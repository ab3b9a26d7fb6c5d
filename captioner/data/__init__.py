"""Data sets: readers of every layout, the feature cache, and the batches of training."""
