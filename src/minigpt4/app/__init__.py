"""What puts the model to use: the web page, the HTTP API, and the job of `minigpt4 generate`."""
