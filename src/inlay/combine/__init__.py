"""Adapters made of adapters, on their files alone: no model is needed, and none is loaded.

combine     several adapters into one: `ways` has a file for each way of it
    convert     a change of any method that has linear maps as a plain LoRA
    extract     an adapter out of a fine-tuned checkpoint and its base
    diff        how two adapters differ; with the base's weights, their intruder dimensions too
"""
