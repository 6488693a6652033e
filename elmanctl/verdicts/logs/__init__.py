"""Classification of training logs by their text alone."""
