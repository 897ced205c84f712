"""The transformers engine's other half: models whose answers are vectors."""
