"""The only SQL. One repository per noun, on sessions that a unit of work opens and commits."""
