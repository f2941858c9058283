"""Rows and samples that stay on the disk: of each its place alone is held, so that data may be larger than the memory."""
