"""Replay: simulated searches of optimizers, on surrogates of recorded ones and on functions."""
