"""What an operation and a training step take on this machine, beside what they must take."""
