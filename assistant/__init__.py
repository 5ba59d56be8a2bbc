"""Decides and speaks: the diagnosis engine, its advice, and the faces that show it."""

__version__ = "0.1.0"
