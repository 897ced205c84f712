"""Turns a model's name into a checkpoint on this machine's disk: from the hub, a folder or a package."""
