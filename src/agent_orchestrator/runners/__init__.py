"""The adapters that run agents. Each is imported only if a provider uses it."""
