"""The transformers engine: OpenAI's completions on the library's continuous batching."""
