"""The commands: arguments and messages, nothing else."""
