"""`minigpt4 pocket demo`: both stages, measured, as a page."""
