"""What is measured by hand and not gated by a test: ``python -m benchmarks.NAME``."""
