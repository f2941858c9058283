"""GGUF, the files of llama.cpp: their header, what their names mean, and a model of one as the base it was converted from."""
