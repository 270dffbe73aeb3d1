"""The HTTP API that OpenAI's clients speak (`minigpt4 serve`)."""
