"""The page that agentd serves at ``/``: its files, and the routes that serve them."""
