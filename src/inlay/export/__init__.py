"""A checkpoint with an adapter in it: merged, quantised again, and held to the unmerged."""
