"""Dataclasses as command lines: flags and settings files become their fields."""
