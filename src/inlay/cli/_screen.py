"""What the commands say, by the functions of `inlay.screen`."""

from inlay.screen import bar, console, count, emit, fact, is_terminal, printable_output, say, size

__all__ = ["bar", "console", "count", "emit", "fact", "is_terminal", "printable_output", "say", "size"]
