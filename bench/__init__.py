"""Measurements, run by hand; each prints a table and takes --json FILE."""
