"""Many runs at once on one base: which there are, their common steps, what they come to."""
