"""The `bitmill` command. It starts processes and speaks HTTP; it knows nothing else of the server."""
