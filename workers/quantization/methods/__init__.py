"""One file per method: how it works."""
