"""Benchmarks of operations and training steps, beside the least they must take."""
