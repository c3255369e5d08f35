"""The server of `benchmarks/serve.py`: one process answers HTTP, one process a model runs it.

library     the data of a run: titles, users, catalogues, search            (no torch)
questions   prompts for a test user or for a history that somebody composes (no torch)
ranker      items by a model, and by a prior with it, for many histories at once
writing     text by a model, a token at a time
worker      the loop of a model's process: what waits is ranked together, texts take turns
engine      the HTTP side's end of such processes: bounds, time limits, replicas
schemas     what requests may hold
guard       size, key, host and time of every request; the metrics
app         the routes
page.html   the page
"""
