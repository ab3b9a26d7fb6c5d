"""Objectives: what a training learns from."""
