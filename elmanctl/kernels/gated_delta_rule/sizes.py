"""How many positions backend `torch` computes at once; imports no torch."""

CHUNK = 64
