"""Damaged model folders: the opener and a command that uses it say so in one line, and nothing in them is executed."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from onerec.errors import InputError
from onerec.model_folder import needed_tensors, open_encoder, open_model_folder, read_config
from onerec.render import RENDERERS
from onerec.sid import SidSpec
from pretrain import check_hf_model
from tests.model_folders import tiny_model

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["a", "b", "c", "d", "<|im_start|>", "<|im_end|>"]
SPEC = SidSpec((2, 3), first_id=len(WORDS))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "m", WORDS + SPEC.tokens, SPEC)


def edit(name: str = "config.json", **values):
    """A damage: these values in a JSON file of the folder; ``...`` takes a key out."""

    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))

    return damage


def text(name: str, content: str | bytes | None):
    """A damage: a file with other content, or none."""

    def damage(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def weights(change):
    """A damage: other tensors."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def cut(part: float):
    def damage(folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: int(len(whole) * part)])

    return damage


def header(**entries):
    """A damage: weights whose header says this."""
    head = json.dumps(entries).encode()
    return text("model.safetensors", struct.pack("<Q", len(head)) + head + bytes(64))


def sharded(index=None, **files):
    """A damage: the weights in two shards, with another index or without one of the files."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        for part, chosen in (("1.safetensors", names[:4]), ("2.safetensors", names[4:])):
            save_file({name: tensors[name] for name in chosen}, folder / part)
        places = {name: "1.safetensors" if name in names[:4] else "2.safetensors" for name in names}
        value = {"weight_map": places} if index is None else index(places)
        (folder / "model.safetensors.index.json").write_text(json.dumps(value))
        for name, content in files.items():
            text(name.replace("_", ".", 1).lstrip("f"), content)(folder)

    return damage


def evil(name: str, *, instead: str | None = None):
    """A damage: a pickle that writes a file where it runs."""

    class Evil:
        def __init__(self, canary: Path) -> None:
            self.canary = canary

        def __reduce__(self):
            return open, (str(self.canary), "w")

    def damage(folder: Path) -> None:
        if instead:
            (folder / instead).unlink()
        (folder / name).write_bytes(pickle.dumps({"model.norm.weight": Evil(folder.parent / "CANARY")}))

    return damage


def own_code(folder: Path) -> None:
    """A model type that transformers knows not, and Python beside it that says what it is."""
    (folder / "evil.py").write_text(
        f"open({str(folder.parent / 'CANARY')!r}, 'w')\n"
        "from transformers import Qwen3Config as C, Qwen3ForCausalLM as M\n"
    )
    edit(model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(folder)


NORM = "model.norm.weight"
DAMAGES = {
    "no config": (text("config.json", None), "no config.json"),
    "config is a list": (text("config.json", "[1]"), "config.json: is not a JSON object"),
    "config is cut": (text("config.json", '{"model_type": '), "config.json: is not JSON"),
    "config is deep": (text("config.json", "[" * 100_000), "config.json: is not"),
    "config in another encoding": (text("config.json", b"\xff\xfe{"), "config.json: is not JSON"),
    "config is a pointer": (text("config.json", POINTER), "config.json: is a Git LFS pointer"),
    "config is a folder": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), "no config.json"),
    "unknown backbone": (edit(model_type="gpt_j"), "m: is a gpt_j; a family with a renderer: qwen3$"),
    "no backbone": (edit(model_type=...), "its config.json has no model_type"),
    "a list for a backbone": (edit(model_type=["qwen3"]), "is a \\['qwen3'\\]"),
    "a size as text": (edit(hidden_size="8"), "hidden_size is '8'; a whole number of 1 or more"),
    "a size as a fraction": (edit(hidden_size=8.0), "hidden_size is 8.0"),
    "a size as a switch": (edit(num_hidden_layers=True), "num_hidden_layers is True"),
    "no vocabulary": (edit(vocab_size=0), "vocab_size is 0"),
    "vocabulary as text": (edit(vocab_size="many"), "vocab_size is 'many'"),
    "vocabulary is missing": (edit(vocab_size=...), "vocab_size is None"),
    "negative heads": (edit(num_attention_heads=-4), "num_attention_heads is -4"),
    "no heads": (edit(num_attention_heads=0, num_key_value_heads=0), "num_attention_heads is 0"),
    "heads that do not divide": (
        edit(num_attention_heads=3, num_key_value_heads=2),
        "num_key_value_heads is 2; a divisor",
    ),
    "an odd head": (edit(head_dim=7), "head_dim is 7; an even number"),
    "endless layers": (edit(num_hidden_layers=1 << 30), "do not hold model.layers.1."),
    "more layers than anything": (edit(num_hidden_layers=10**30), "num_hidden_layers is 1000"),
    "context as text": (edit(max_position_embeddings="64"), "max_position_embeddings is '64'"),
    "tied as text": (edit(tie_word_embeddings="yes"), "tie_word_embeddings is 'yes'; true or false"),
    "epsilon is no number": (edit(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    "an unknown type": (edit(dtype="float3"), "dtype is 'float3'"),
    "an end as text": (edit(eos_token_id="</s>"), "eos_token_id is '</s>'"),
    "an end below 0": (
        text("generation_config.json", '{"eos_token_id": [1, -2]}'),
        "generation_config.json: eos_token_id",
    ),
    "generation config is a list": (
        text("generation_config.json", "[]"),
        "generation_config.json: is not a JSON object",
    ),
    "a theta as text": (edit(rope_theta="1e6"), "rope_theta is '1e6'"),
    "quantised": (edit(quantization_config={"bits": 4}), "quantization_config is"),
    "an adapter": (text("adapter_config.json", "{}"), "is an adapter"),
    "no weights": (text("model.safetensors", None), "no model.safetensors"),
    "pickled weights": (
        evil("pytorch_model.bin", instead="model.safetensors"),
        "pytorch_model.bin: holds weights as a pickle",
    ),
    "a pickle called safetensors": (evil("model.safetensors"), "is not a whole safetensors file"),
    "empty weights": (text("model.safetensors", b""), "model.safetensors: is empty"),
    "weights are a pointer": (text("model.safetensors", POINTER), "model.safetensors: is a Git LFS pointer"),
    "a header cut short": (cut(0.02), "is not a whole safetensors file"),
    "values cut short": (cut(0.9), "is shorter than its header says"),
    "a few bytes": (text("model.safetensors", b"abc"), "is not a whole safetensors file"),
    "a header that is a list": (text("model.safetensors", struct.pack("<Q", 2) + b"[]"), "is not a whole"),
    "endless values": (header(a={"dtype": "F32", "shape": [1], "data_offsets": [0, float("inf")]}), "is not a whole"),
    "a tensor without a shape": (header(a={"dtype": "F32"}), "is not a whole"),
    "bytes that are not the shape's": (
        header(a={"dtype": "F32", "shape": [9], "data_offsets": [0, 64]}),
        "not those of its shape",
    ),
    "values beyond the file": (header(a={"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}), "is shorter than"),
    "a tensor is missing": (weights(lambda t: t.pop(NORM)), f"do not hold {NORM}"),
    "a tensor of another shape": (weights(lambda t: t.update({NORM: np.ones(9, np.float32)})), r"is \[9\]; \[8\]"),
    "a tensor of whole numbers": (weights(lambda t: t.update({NORM: np.ones(8, np.int8)})), "is of type I8"),
    "another width": (edit(hidden_size=4), "as config.json says"),
    "a head that is not there": (edit(tie_word_embeddings=False), "do not hold lm_head.weight"),
    "layers beyond the configuration's": (
        weights(lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.ones((8, 8), np.float32)})),
        "holds model.layers.1.mlp.up_proj.weight, which config.json does not know",
    ),
    "a sliding window": (edit(use_sliding_window=True), "use_sliding_window is True; false"),
    "layers with windows": (
        edit(layer_types=["sliding_attention"]),
        "layer_types is .*; full_attention in every layer",
    ),
    "another family": (edit(model_type="llama"), "m: is a llama; a family with a renderer: qwen3$"),
    "a shard is missing": (sharded(f2_safetensors=None), "2.safetensors: no such file, and"),
    "a shard is empty": (sharded(f2_safetensors=b""), "2.safetensors: is empty"),
    "an index without a map": (sharded(index=lambda places: {}), "has no weight_map"),
    "an index of numbers": (sharded(index=lambda places: {"weight_map": {NORM: 1}}), "goes with the file '1'"),
    "an index that points elsewhere": (
        sharded(index=lambda places: {"weight_map": {NORM: "../x.safetensors"}}),
        "goes with the file",
    ),
    "an index of a pickle": (
        sharded(index=lambda places: {"weight_map": {NORM: "x.bin"}}),
        "goes with the file 'x.bin'",
    ),
    "an index that is wrong": (
        sharded(index=lambda places: {"weight_map": dict.fromkeys(places, "1.safetensors")}),
        "1.safetensors: does not hold",
    ),
    "two sets of weights": (
        text("model.safetensors.index.json", '{"weight_map": {"a": "o.safetensors"}}'),
        "goes with the file 'model.safetensors'",
    ),
    "no tokenizer": (text("tokenizer.json", None), "has no tokenizer.json"),
    "a tokenizer that is none": (text("tokenizer.json", '{"model": 5}'), "tokenizer.json: cannot be loaded"),
    "a tokenizer that is a list": (text("tokenizer.json", "[]"), "tokenizer.json: is not a JSON object"),
    "a tokenizer that is a pointer": (text("tokenizer.json", POINTER), "tokenizer.json: is a Git LFS pointer"),
    "a tokenizer config that is none": (text("tokenizer_config.json", "{,}"), "tokenizer_config.json: is not JSON"),
    "a tokenizer that is too large": (
        lambda f: tiny_tokenizer(f, [*WORDS, *SPEC.tokens, "e", "f", "g", "h", "i"]),
        "has the id",
    ),
    "a tokenizer without SIDs": (
        lambda f: tiny_tokenizer(f, WORDS),
        "its tokenizer has <s_a_0> at None, its sid_spec.json at 6",
    ),
    "SIDs at other ids": (
        lambda f: SidSpec((2, 3), first_id=5).save(f),
        "its tokenizer has <s_a_0> at 6, its sid_spec.json at 5",
    ),
    "SIDs beyond the vocabulary": (
        lambda f: SidSpec((2, 3), first_id=12).save(f),
        "no ids inside its 16 embedding rows",
    ),
    "SIDs without ids": (lambda f: SidSpec((2, 3)).save(f), "no ids inside its 16 embedding rows"),
    "SIDs that are none": (text("sid_spec.json", "{}"), "is not a SID specification"),
    "code of its own": (own_code, "is a evil"),
}


def tiny_tokenizer(folder: Path, words: list[str]) -> None:
    tiny_model(folder / "other", words, SidSpec((2, 3), first_id=6), rows=32)
    shutil.copy(folder / "other" / "tokenizer.json", folder)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_one_line(good, tmp_path, name):
    damage, words = DAMAGES[name]
    shutil.copytree(good, tmp_path / "m")
    damage(tmp_path / "m")
    for use in (open_model_folder, lambda path: check_hf_model.main(["--hf_model_dir", str(path)])):
        with pytest.raises(InputError, match=words) as error:
            use(tmp_path / "m")
        assert "\n" not in str(error.value) and str(tmp_path / "m") in str(error.value)
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    "change",
    [
        sharded(),
        edit(
            tie_word_embeddings=True,
            layer_types=["full_attention"],
            sliding_window=9,
            dtype="bfloat16",
            head_dim=32,
            max_position_embeddings=None,
        ),
        edit(auto_map={"AutoModelForCausalLM": "evil.M"}, eos_token_id=[5, 0], pad_token_id=None),
        weights(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]})),
        weights(lambda t: t.update({NORM: t[NORM].astype(np.float16)})),
        text("pytorch_model.bin", b"not asked for"),
        text("sid_spec.json", None),
    ],
)
def test_what_others_write_is_taken(good, tmp_path, change):
    shutil.copytree(good, tmp_path / "m")
    change(tmp_path / "m")
    model = open_model_folder(tmp_path / "m")
    assert model.vocab_size == 16 and (model.spec is None or model.spec == SPEC)


@pytest.mark.parametrize("kind", RENDERERS)
@pytest.mark.parametrize("more", [{}, {"tie_word_embeddings": False, "attention_bias": True, "head_dim": ...}])
def test_the_tensors_of_an_architecture_are_those_of_transformers(tmp_path, kind, more):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        num_hidden_layers=2,
    )
    folder = tiny_model(tmp_path / "m", WORDS, model_type=kind, **(sizes | more))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config, trust_remote_code=False).state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert dict(needed_tensors(read_config(folder))) == {key: tuple(value.shape) for key, value in state.items()}
    open_model_folder(folder)


def test_python_beside_a_model_is_never_run(good, tmp_path):
    """What transformers would look for beside a backbone that it knows: classes, a tokenizer, a way to generate."""
    from transformers import AutoTokenizer

    from pretrain.model import load_lm

    shutil.copytree(good, tmp_path / "m")
    (tmp_path / "m/custom_generate").mkdir()
    for name in ("evil.py", "custom_generate/generate.py"):
        (tmp_path / "m" / name).write_text(f"open({str(tmp_path / 'CANARY')!r}, 'w')\n")
    places = {name: "evil.X" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}
    edit(auto_map=places | {"AutoTokenizer": ["evil.X", "evil.X"]})(tmp_path / "m")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "auto_map": {"AutoTokenizer": ["evil.X", "evil.X"]},
    }
    text("tokenizer_config.json", json.dumps(tokenizer))(tmp_path / "m")
    open_model_folder(tmp_path / "m")
    assert load_lm(tmp_path / "m").config.model_type == "qwen3"
    assert len(AutoTokenizer.from_pretrained(tmp_path / "m", trust_remote_code=False)) == 13
    assert not (tmp_path / "CANARY").exists()


def test_weights_that_are_no_numbers_are_refused_where_they_are_read(good, tmp_path):
    from benchmarks.backends.hf import HfBackend
    from pretrain.model import load_lm

    shutil.copytree(good, tmp_path / "m")
    weights(lambda tensors: tensors[NORM].fill(np.nan))(tmp_path / "m")
    open_model_folder(tmp_path / "m")
    for use in (load_lm, lambda path: HfBackend(path, None)):
        with pytest.raises(InputError, match=f"its weight {NORM} holds values that are no numbers"):
            use(tmp_path / "m")


def test_an_encoder_is_opened_in_the_same_way(good, tmp_path):
    """But for its architecture, which may be any that transformers knows; that one is compared as it loads."""
    from tokenizer.text_encoder import TextEncoder

    shutil.copytree(good, tmp_path / "m")
    for name in ("config is a list", "empty weights", "pickled weights", "an adapter", "code of its own"):
        shutil.rmtree(tmp_path / "m")
        shutil.copytree(good, tmp_path / "m")
        DAMAGES[name][0](tmp_path / "m")
        if name != "code of its own":
            with pytest.raises(InputError, match=DAMAGES[name][1]):
                open_encoder(tmp_path / "m")
        with pytest.raises(InputError):
            TextEncoder(str(tmp_path / "m"))
    assert not (tmp_path / "CANARY").exists()
    shutil.copytree(good, tmp_path / "m", dirs_exist_ok=True)
    weights(lambda tensors: tensors.pop(NORM))(tmp_path / "m")
    with pytest.raises(InputError, match=r"do not hold norm\.weight"):
        TextEncoder(str(tmp_path / "m"))


def said(call: ast.Call) -> tuple[str, str] | None:
    """(keyword, value) that a call must say: no Python of a folder in transformers and vLLM, tensors alone in torch."""
    whole = ast.unparse(call.func)
    if whole == "torch.load":
        return "weights_only", "True"
    if whole == "LLM" or ("auto" in whole.lower() and whole.endswith((".from_pretrained", ".from_config"))):
        return "trust_remote_code", "False"
    return None


def test_nothing_asks_transformers_for_foreign_code():
    found = 0
    for folder in (
        "onerec",
        "pretrain",
        "benchmarks",
        "tokenizer",
        "verl_rl",
        "verl_distillation",
        "scripts",
    ):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and (wanted := said(call)):
                    found += 1
                    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                    assert given.get(wanted[0]) == wanted[1], f"{path}:{call.lineno}: {wanted}"
    assert found > 10
