"""The proposer: a text-to-image model draws what a detailed prompt says."""
