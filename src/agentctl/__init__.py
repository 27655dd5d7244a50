"""The command line of agent-orchestrator. It reaches the daemon only over the wire."""
