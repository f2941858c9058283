"""A run in one process, or in many that share its steps."""
