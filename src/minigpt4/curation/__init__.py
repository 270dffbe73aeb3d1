"""Building stage 2's dataset (paper, section 3.2): describe, refine, filter, select, review, export."""
