"""The command line: its commands, their arguments, and all output."""
