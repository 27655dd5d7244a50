"""Speed and memory of the project, each compared with the least possible."""
