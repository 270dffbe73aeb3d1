"""What the LLM reads: chat formats, and their way to token ids with places for images."""
