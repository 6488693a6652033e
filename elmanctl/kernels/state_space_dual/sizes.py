"""Chunk size of backend `torch`, in positions; imports no torch."""

CHUNK = 64
