"""Pure tensor mathematics: torch only; no modules, no files, no configuration."""
