"""Making a base: task, load, quantise, and what is asked of one."""
