"""The shared parts of runners whose agents stay alive between runs and are spoken to in lines."""
