"""Safetensors checkpoints read and written one tensor at a time."""
