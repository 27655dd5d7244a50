"""The shared parts of runners whose agents stay alive between runs and exchange messages line by line."""
