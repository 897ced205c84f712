"""Bitmill's working side: quantization jobs, measurements and model serving."""
