"""The daemon: an HTTP server in front of the engine."""
