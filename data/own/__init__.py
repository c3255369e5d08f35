"""Tables of one's own, items and logs, as the flat arrays and rows that data/adapters/own.py writes."""
