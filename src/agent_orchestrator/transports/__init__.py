"""Client-side transports."""
