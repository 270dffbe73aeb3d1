"""The world and its pictures: what may be true of one, and how it is drawn."""
