"""The pocket parts and how they are trained from nothing: vision tower with Q-Former, LLM, captioning LM."""
