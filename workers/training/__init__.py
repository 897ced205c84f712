"""Fine-tuning: from files of examples to adapters and trained models."""
