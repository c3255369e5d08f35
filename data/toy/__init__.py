"""The toy world: a seeded catalogue, its users and its general text, small but with real structure."""
