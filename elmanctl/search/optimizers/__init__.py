"""Optimizers of a search behind one port; each is a function of what was asked and reported."""
