"""What ``./bin/test --quick`` leaves out."""

AT_LENGTH = frozenset(
    {
        # the real agents, foreign programs, whole experiments
        "benchmarks",
        "chaos",
        "codex",
        "examples",
        "packaging",
        # the same contract as test_embedded.py, over HTTP
        "client/test_http.py",
        # more than five seconds of processor time each
        "agentctl/test_agentctl_daemon.py",
        "agentctl/test_agentctl_endpoints.py",
        "agentctl/test_agentctl_questions.py",
        "agentctl/test_agentctl_sizes.py",
        "agentctl/test_agentctl_streams.py",
        "agentctl/test_agentctl_top.py",
        "agentd/test_agentd_acl.py",
        "agentd/test_agentd_injection.py",
        "agentd/test_agentd_known_databases.py",
        "agentd/test_agentd_named_tokens.py",
        "agentd/test_agentd_odd_names.py",
        "agentd/test_agentd_run_attacks.py",
        "agentd/test_agentd_sharing.py",
        "agentd/test_agentd_sizes.py",
        "agentd/test_agentd_strangers.py",
        "agentd/test_agentd_streams.py",
        "agentd/test_agentd_sweeps.py",
        "docs/test_documents.py",
        "engine/test_diagnosis.py",
        "engine/test_families.py",
        "engine/test_simulation.py",
        "runners/test_bulk.py",
        "runners/test_command.py",
        "runners/test_process.py",
        "stores/test_sqlite_file_locations.py",
        "tools/test_mcp_http.py",
        "tools/test_mcp_sizes.py",
        "tools/test_mcp_stdio.py",
        "wire/test_wire_codec.py",
    }
)
"""What ``--quick`` leaves out, beside the tests on trio: folders and files in this one."""
