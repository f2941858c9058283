"""What a model is made of, frozen over its files, and what trials of it tell; nothing here knows an adapter."""
