"""A run in plain values: where it stands, its forecast, its budget, its record."""
