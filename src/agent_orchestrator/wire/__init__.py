"""Objects to JSON and back, for whatever carries them."""
