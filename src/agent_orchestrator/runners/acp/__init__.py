"""Agents that speak the Agent Client Protocol (ACP), version 1, over stdio."""
