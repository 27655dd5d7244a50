"""The adapters that run agents. One is loaded only when a provider asks for it."""
