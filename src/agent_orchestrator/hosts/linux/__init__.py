"""Linux: a supervisor adopts whatever an agent starts, and what a lost one left is found by its tag."""
