"""What a model is made of: its layers, which of them a method changes, and whether an adapter fits them."""
