"""The surface that OpenAI's clients expect."""
