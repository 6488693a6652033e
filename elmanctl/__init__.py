"""Architecture searches on Slurm clusters that can be believed."""

__version__ = "0.1.0"
