"""Samples as tensors: the parts of a step, packed into one row each or padded to a batch, and what rows begin with alike."""
