"""Recurrence: the cells as the textbook writes them, and the loop over time around them."""
