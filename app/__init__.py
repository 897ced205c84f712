"""Bitmill's web side: the API, its rules and its storage. Runs without any ML library."""

__version__ = "0.1.0"
