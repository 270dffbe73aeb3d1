"""From a picture and a question to an answer: batched, streamed, and in conversation."""
