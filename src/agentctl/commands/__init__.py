"""The commands, one module per group. Modules are imported on use."""
