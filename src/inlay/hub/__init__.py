"""Adapters kept and shared: a store of files by their digests, and names for them. What the files mean is `formats`' to say."""
