"""Answers to prompts: how tokens are drawn, when an answer ends, and an engine for many requests at a time."""
