"""The pocket world: a laboratory in which MiniGPT-4 can be trained and measured on a CPU, with exact truth."""
