"""Starts a job from a checkpoint and brings every checkpoint that it writes back."""

__version__ = "0.1.0"
