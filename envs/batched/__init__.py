"""Tensor maths for many members in one call: layers, parameters, activations, augmentation. Knows torch alone."""
