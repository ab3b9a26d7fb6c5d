"""Decoding: strategies over ``start``/``step`` callables and plain values."""
