"""The page to chat about images in a browser (`minigpt4 web`)."""
