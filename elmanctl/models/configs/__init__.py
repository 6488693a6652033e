"""Configurations of the model families, one file per family; imports no torch."""
