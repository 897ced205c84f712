"""Files: staging, checksums, publishing by one rename, and the checking of checkpoints."""
