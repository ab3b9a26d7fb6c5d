"""Datasets: readers of every layout, the feature cache, and batches for training."""
