"""The labelling page: what is to be judged next, and what was said, kept at each key."""
