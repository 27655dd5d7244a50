"""How fast and how light it is, measured beside what it cannot be faster than."""
