"""`minigpt4 pocket reproduce` and `ablations`: the paper's claims, tested in the pocket world."""
