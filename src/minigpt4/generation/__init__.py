"""From an image and a question to an answer: batched, streamed, and in conversation."""
