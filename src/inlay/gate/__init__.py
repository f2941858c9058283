"""The data gate: what is wrong with rows is found before they are learned. Errors stop a run, warnings are counted."""
