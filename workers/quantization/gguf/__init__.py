"""From a Hugging Face checkpoint to llama.cpp's file format, and its block types."""
