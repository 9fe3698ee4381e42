"""What the documentation shows as results: made unit by unit, kept in committed files, put together from these.

A *unit* is what can be made in one go: one training with its held-out episodes, the controls of a world, or what
searches on single hosts can try there. Its figures are kept with a hash of all that they depend on, and are used
again under that hash alone.
"""
