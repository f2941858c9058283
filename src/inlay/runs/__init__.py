"""What a run will take and took: its forecast, its budget, its record."""
