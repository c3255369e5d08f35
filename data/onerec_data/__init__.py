"""The eleven RecIF tasks: logs and SIDs to training records and benchmark files, over one engine."""
