"""`minigpt4 pocket curate`: what each step of the curation pipeline is worth."""
