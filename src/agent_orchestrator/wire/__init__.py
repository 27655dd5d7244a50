"""Conversion between objects and JSON, independent of the transport."""
