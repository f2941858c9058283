"""Answers to prompts: how tokens are drawn, when an answer ends, and which rows share a batch."""
