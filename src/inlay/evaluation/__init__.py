"""How good a model is: answers against references, classes against those that are right."""
