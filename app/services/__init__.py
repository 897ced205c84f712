"""Use cases, one file per noun. Each opens its own unit of work and commits before it returns."""
