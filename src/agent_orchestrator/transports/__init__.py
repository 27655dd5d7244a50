"""Ways to an engine that is somewhere else."""
