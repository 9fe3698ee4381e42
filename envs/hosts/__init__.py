"""Base networks that seeds grow in."""
