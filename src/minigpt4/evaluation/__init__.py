"""Measuring what a model says about pictures: abilities, reliability, intervals, and the demo that shows them."""
