"""Measuring what a model says about images: abilities, reliability, intervals, and the demo that shows them."""
