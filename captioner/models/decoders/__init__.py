"""Decoders: from features and the words so far to the probabilities of the next word."""
