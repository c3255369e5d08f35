"""The toy world: a seeded catalogue, its users and its general text, small enough for a laptop and with real structure."""
