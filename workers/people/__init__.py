"""A local page that asks one person: who may ask it, and what was said, kept at each key."""
