"""Training the projection: the recipe, the loop, checkpoints and what they leave on disk."""
