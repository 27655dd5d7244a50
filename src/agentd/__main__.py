"""``python -m agentd``."""

from agentd.cli import main

main(prog_name="agentd")
