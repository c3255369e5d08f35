"""The contracts that stages share, and nothing else: SID grammar, records, chat rendering, item index,
item decoding, run directories. Importing this package pulls in neither torch nor transformers."""

__version__ = "0.1.0"
