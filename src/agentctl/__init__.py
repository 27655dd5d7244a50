"""The command line of agent-orchestrator. It uses the daemon only through its HTTP API."""
