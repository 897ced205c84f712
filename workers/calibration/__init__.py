"""Calibration data: one component for every method that looks at activations."""
