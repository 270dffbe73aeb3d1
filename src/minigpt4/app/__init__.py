"""Ways to talk to a model over the network."""
