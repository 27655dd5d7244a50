"""POSIX without Linux's supervisors, for development on systems such as macOS."""
