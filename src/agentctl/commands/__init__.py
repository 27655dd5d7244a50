"""The commands, one module for each group, imported when one of them is called."""
