"""Files into plain values and back, one format each. Files come from strangers: everything is checked before it is used."""
