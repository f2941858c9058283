"""Tokens and masks, the same for training and for generating: what a model saw is what it gets."""
