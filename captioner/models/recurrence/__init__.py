"""Recurrence: the cells as in the textbook, and the loop over time around them."""
