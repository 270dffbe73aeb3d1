"""Pocket pictures as training sets and as benchmark files."""
