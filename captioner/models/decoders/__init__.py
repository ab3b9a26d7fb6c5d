"""Decoders: from features and the words so far to logits of the next word."""
