"""Checkpoints: one safe, self-contained file each; the models that come with the package."""
