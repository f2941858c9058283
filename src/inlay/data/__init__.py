"""Rows to learn from: read from files, recognised by their keys; nothing is left out uncounted."""
