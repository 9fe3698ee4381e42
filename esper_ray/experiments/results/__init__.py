"""The results that the documentation shows: made unit by unit, kept in files that are committed, put together from them.

A *unit* is what can be made in one go: one training with its held-out episodes, the controls of a world, or the
networks that searches on single hosts can try. Its figures are kept with a hash of all that they depend on, and are
used again under that hash alone.
"""
