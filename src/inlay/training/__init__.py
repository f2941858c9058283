"""Training: rows and their tokens, the settings of a run, the step, the loop, what is written at the end."""
