"""Benchmarks of operations and training steps against their roofline."""
