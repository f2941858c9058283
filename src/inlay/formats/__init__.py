"""Adapters on disk: one file for each format."""
