"""Compiled kernels for what torch has no single call for, and the functions that differentiate through them."""
