"""Turns a model's name into a checkpoint on this machine's disk: from the hub, a folder, an upload or a package."""
