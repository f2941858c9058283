"""The maths of `inlay.core` made fast: one file per kernel, each with the plain way as its oracle and its fallback."""
