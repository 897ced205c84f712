"""Training: adapters, whole models, and models that learn to be quantized."""
