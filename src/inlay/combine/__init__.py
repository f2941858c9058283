"""Adapters made of adapters, on their files alone: no model is needed, and none is loaded.

combine     several adapters into one: `ways` has a file for each way of it
    diff        how two adapters differ; with the base's weights, their intruder dimensions too
"""
