"""File names of the hand-offs between stages, each written once."""

PID2SID = "pid2sid.parquet"
SID_SPEC = "sid_spec.json"
FILE_LIST = "file_list.json"
# Files of a Hugging Face checkpoint beside its weights that say what the model is; those of the tokenizer are carried
# from stage to stage as they are.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    SID_SPEC,
)
MODEL_FILES = ("config.json", *TOKENIZER_FILES)
PROMPTS = "prompts.json"
RL_TRAIN, RL_TEST = "train.parquet", "test.parquet"


def shard_name(index: int, count: int) -> str:
    """``part-00000-of-000NN.parquet``."""
    return f"part-{index:05d}-of-{count:05d}.parquet"
