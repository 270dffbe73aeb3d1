"""The aligned model: frozen vision side, one trained linear projection, frozen LLM."""
