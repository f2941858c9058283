"""A run before it is run: planned over an outline of its base, and measured by some of its own batches."""
