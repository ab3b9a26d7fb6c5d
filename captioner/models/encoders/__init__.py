"""Encoders: from images to features."""
