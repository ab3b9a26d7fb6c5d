"""Objectives: the losses that a training minimizes."""
