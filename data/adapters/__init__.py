"""Adapters: public data sets in the RecIF release layout."""
