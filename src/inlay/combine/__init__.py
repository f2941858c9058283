"""Adapters made of adapters, on their files alone: no model is needed, and none is loaded.

combine     several adapters into one: `ways` has a file for each way of it
"""
