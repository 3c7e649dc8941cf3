"""Section 3 of the paper, in its order: synthesize, judge, train."""
