"""Checkpoints, safe and self-contained files; bundled models; the list of models."""
