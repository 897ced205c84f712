"""Measuring what quantization cost: one protocol for every format, fed with the same token ids."""
