"""What a person sees of a run: its lines, its curve, its page."""
