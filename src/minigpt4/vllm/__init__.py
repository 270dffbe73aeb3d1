"""Serving an export behind vLLM."""
