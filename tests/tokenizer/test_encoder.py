"""HF encoders: pooling as the model folder says, batches that change nothing, shards that can be gone on with."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onerec.errors import InputError
from onerec.parquet import embedding_table, write_table
from onerec.run import Manifest
from tests.arguments import as_flags, torchrun
from tokenizer import embed_items
from tokenizer.embed_items import main
from tokenizer.embeddings import iter_embeddings
from tokenizer.text_encoder import TextEncoder

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["short", "a much longer text than that", "中文", "x", "one more of middle size"]


def tokenizer_in(folder, **special):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(alphabet, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


def bert(folder):
    """A tiny random BERT: absolute positions, so that padding in front would change what it gives."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertModel(BertConfig(vocab_size=260, max_position_embeddings=64, **sizes)).eval()
    model.save_pretrained(folder)
    return tokenizer_in(folder, pad_token="[PAD]"), model


def modules(folder, pooling, *more):
    """Make a folder a sentence-transformers one."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *more]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def states(tokenizer, model, text):
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=64)).last_hidden_state[0]


@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, lambda s: s.mean(0)),
        ({"pooling_mode_cls_token": True}, lambda s: s[0]),
        ({"pooling_mode_max_tokens": True}, lambda s: s.amax(0)),
        ({"pooling_mode": "mean", "include_prompt": True}, lambda s: s.mean(0)),
    ],
)
def test_a_sentence_transformers_folder_says_how_it_pools(tmp_path, config, by_hand):
    tokenizer, model = bert(tmp_path)
    modules(tmp_path, config, ("2_Normalize", "Normalize"))
    vectors = TextEncoder(str(tmp_path)).encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = torch.nn.functional.normalize(by_hand(states(tokenizer, model, text)), dim=0)
        assert np.allclose(vector, expected, atol=1e-5)
    alone = TextEncoder(str(tmp_path), max_batch_tokens=1).encode(TEXTS)
    assert np.allclose(vectors, alone, atol=1e-5)


def test_a_dense_layer_is_applied(tmp_path):
    from safetensors.torch import save_file

    tokenizer, model = bert(tmp_path)
    modules(tmp_path, {"pooling_mode_mean_tokens": True}, ("2_Dense", "Dense"))
    (tmp_path / "2_Dense").mkdir()
    config = {
        "in_features": 16,
        "out_features": 6,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(config))
    linear = torch.nn.Linear(16, 6)
    save_file({f"linear.{k}": v for k, v in linear.state_dict().items()}, tmp_path / "2_Dense" / "model.safetensors")
    encoder = TextEncoder(str(tmp_path))
    expected = torch.tanh(linear(states(tokenizer, model, TEXTS[1]).mean(0)))
    assert encoder.dim == 6
    assert np.allclose(encoder.encode(TEXTS)[1], torch.nn.functional.normalize(expected, dim=0).detach(), atol=1e-5)


def test_a_module_that_is_not_known_is_refused(tmp_path):
    bert(tmp_path)
    modules(tmp_path, {"pooling_mode_mean_tokens": True}, ("2_LSTM", "LSTM"))
    with pytest.raises(InputError, match="has a module LSTM"):
        TextEncoder(str(tmp_path))
    modules(tmp_path, {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True})
    with pytest.raises(InputError, match="pools by"):
        TextEncoder(str(tmp_path))


def test_an_end_token_of_the_tokenizer_stays_last_when_a_text_is_cut(tmp_path):
    """Qwen3-Embedding's tokenizer appends the token whose state is taken."""
    from tokenizers import processors
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = tokenizer_in(tmp_path, eos_token="<e>", pad_token="<e>")
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <e>", special_tokens=[("<e>", end)]
    )
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    model = Qwen3Model(Qwen3Config(vocab_size=260, **sizes)).eval()
    model.save_pretrained(tmp_path)
    encoder = TextEncoder(str(tmp_path), max_tokens=8)
    vectors = encoder.encode(TEXTS)
    assert encoder.pooling == "last"
    ids = tokenizer(TEXTS[1], truncation=True, max_length=8)["input_ids"]
    assert len(ids) == 8 and ids[-1] == end
    with torch.inference_mode():
        state = model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    assert np.allclose(vectors[1], torch.nn.functional.normalize(state, dim=0), atol=1e-5)


def test_batches_hold_near_lengths_and_bounded_tokens(tmp_path):
    bert(tmp_path)
    encoder = TextEncoder(str(tmp_path), max_batch_tokens=20)
    lengths = [4, 30, 5, 6, 4, 10, 10]
    batches = list(encoder.batches(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches == [[1], [5, 6], [3, 2, 0], [4]]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """A BERT folder, and two files of 5 and 6 items, one pid of which stands in both."""
    folder = tmp_path_factory.mktemp("catalogue")
    bert(folder / "model")
    (folder / "in").mkdir()
    words = [f"item {i} {'long ' * (i % 4)}" for i in range(11)]
    write_table(folder / "in" / "a.parquet", pa.table({"pid": list(range(5)), "caption": words[:5]}))
    write_table(folder / "in" / "b.parquet", pa.table({"pid": [5, 6, 2, 8, 9, 10], "caption": [*words[5:10], None]}))
    return folder


def argv(catalogue, output, *more):
    return as_flags(
        *more,
        input=catalogue / "in",
        output_path=output,
        encoder=catalogue / "model",
        shard_rows=4,
        max_bad_ratio="0.2",
    )


def test_shards_follow_rows_across_files_and_doubles_are_seen_across_shards(catalogue, tmp_path, capsys):
    main(argv(catalogue, tmp_path / "one.parquet"))
    out = capsys.readouterr().out
    assert "embedded 9 items, 16 dimensions" in out
    assert "1 (pid is null or stands twice)" in out and "1 (text is empty)" in out
    main(argv(catalogue, tmp_path / "many"))
    one = pq.read_table(tmp_path / "one.parquet")
    files = sorted((tmp_path / "many").glob("*.parquet"))
    assert [file.name for file in files] == [f"part-0000{i}-of-00003.parquet" for i in range(3)]
    many = pa.concat_tables([pq.read_table(file) for file in files])
    assert one["pid"].to_pylist() == [0, 1, 2, 3, 4, 5, 6, 8, 9] == many["pid"].to_pylist()
    assert one["embedding"].equals(many["embedding"])
    written = ["many", "many.manifest.json", "one.manifest.json", "one.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written


def test_a_stopped_run_goes_on_with_the_missing_shards(catalogue, tmp_path, monkeypatch):
    main(argv(catalogue, tmp_path / "whole.parquet"))
    encode, calls = TextEncoder.encode, []

    def stop(self, texts, label="embed"):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, texts, label)

    monkeypatch.setattr(TextEncoder, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        main(argv(catalogue, tmp_path / "out.parquet"))
    assert not (tmp_path / "out.parquet").exists()
    calls[:] = [0, 0]
    main(argv(catalogue, tmp_path / "out.parquet"))
    assert len(calls) == 4, "the first shard is not made again"
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (tmp_path / ".out.shards").exists()


def test_what_a_failed_run_to_a_file_leaves_is_not_in_the_way_of_the_corrected_one(
    catalogue, tmp_path, monkeypatch, capsys
):
    """Nobody asked for the shards of a single file, so those of other settings give way, in one line."""
    main(argv(catalogue, tmp_path / "whole.parquet", "--dim", "8"))
    encode, calls = TextEncoder.encode, []

    def fail(self, texts, label="embed"):
        calls.append(len(texts))
        if len(calls) == 2:
            raise InputError("model", "gives no vectors", "another one")
        return encode(self, texts, label)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="gives no vectors"):
        patch.setattr(TextEncoder, "encode", fail)
        main(argv(catalogue, tmp_path / "out.parquet"))
    assert list((tmp_path / ".out.shards").glob("*.parquet"))
    capsys.readouterr()
    main(argv(catalogue, tmp_path / "out.parquet", "--dim", "8"))
    assert "shards of a run of other settings or input that did not end are removed" in capsys.readouterr().out
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (tmp_path / ".out.shards").exists()


@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_too_many_rows_without_text_are_refused_before_anything_is_encoded(catalogue, tmp_path, monkeypatch, output):
    monkeypatch.setattr(TextEncoder, "encode", lambda *_: pytest.fail("encodes"))
    with pytest.raises(InputError, match=r"2 of 11 rows are bad"):
        main(argv(catalogue, tmp_path / output, "--max_bad_ratio", "0.1"))
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    main(argv(catalogue, tmp_path / output))


def test_shards_of_other_texts_or_of_another_encoder_are_not_gone_on_with(catalogue, tmp_path, monkeypatch):
    """Told by content: the same numbers of rows at the same paths are other texts, a copy elsewhere is the same."""

    def stop(self, texts, label="embed"):
        raise KeyboardInterrupt

    def begin(folder):
        with pytest.raises(KeyboardInterrupt):
            main(argv(folder, tmp_path / "out"))

    monkeypatch.setattr(TextEncoder, "encode", stop)
    begin(catalogue)
    copy = tmp_path / "copy"
    shutil.copytree(catalogue, copy)
    begin(copy)
    texts = copy / "in" / "a.parquet"
    write_table(texts, pa.table({"pid": list(range(5)), "caption": [f"other {i}" for i in range(5)]}))
    with pytest.raises(InputError, match="holds shards of other settings or another input; --overwrite"):
        main(argv(copy, tmp_path / "out"))
    shutil.copy(catalogue / "in" / "a.parquet", texts)
    weights = bytearray((copy / "model/model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "model/model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="holds shards of other settings or another input; --overwrite"):
        main(argv(copy, tmp_path / "out"))


def test_shards_of_a_gpu_are_not_gone_on_with_where_there_is_none(catalogue, tmp_path, monkeypatch):
    """A GPU gives bfloat16."""
    main(argv(catalogue, tmp_path / "out"))
    (tmp_path / "out" / "part-00001-of-00003.parquet").unlink()
    monkeypatch.setattr(embed_items, "chosen_device", lambda wanted: "cuda:0")
    monkeypatch.setattr(embed_items, "make_encoder", lambda args: None)
    with pytest.raises(InputError, match="holds shards of other settings or another input"):
        main(argv(catalogue, tmp_path / "out"))


def test_a_vector_without_numbers_is_dropped_and_counted(catalogue, tmp_path, monkeypatch, capsys):
    encode = TextEncoder.encode

    def broken(self, texts, label="embed"):
        vectors = encode(self, texts, label)
        vectors[0] = np.nan
        return vectors

    monkeypatch.setattr(TextEncoder, "encode", broken)
    main(argv(catalogue, tmp_path / "out.parquet", "--max_bad_ratio", "1"))
    assert "3 (encoder gave no number)" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 6


def test_other_embeddings_stand_beside_the_texts(catalogue, tmp_path):
    beside = pa.array([[3.0, 4.0]], pa.list_(pa.float32(), 2))
    write_table(tmp_path / "co.parquet", pa.table({"pid": [3], "embedding": beside}))
    flags = as_flags(concat=f"{tmp_path / 'co.parquet'}:2")
    main(argv(catalogue, tmp_path / "o.parquet", *flags))
    column = pq.read_table(tmp_path / "o.parquet")["embedding"]
    assert column.type == pa.list_(pa.float32(), 18)
    rows = np.array(column.to_pylist(), np.float32)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(rows[3, 16:], np.array([1.2, 1.6]) / np.sqrt(5), atol=1e-5) and not rows[0, 16:].any()


@pytest.mark.parametrize("missing", [range(6), [4], [1, 5]])
def test_of_the_input_the_row_groups_of_missing_shards_alone_are_read(catalogue, tmp_path, monkeypatch, missing):
    (tmp_path / "in").mkdir()
    for name, first, rows in (("a", 0, 10), ("b", 10, 7)):
        table = pa.table({"pid": range(first, first + rows), "caption": [f"text {first + i}" for i in range(rows)]})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet", row_group_size=3)
    flags = as_flags(input=tmp_path / "in", shard_rows=3)
    main([*argv(catalogue, tmp_path / "out"), *flags])
    names = [tmp_path / "out" / f"part-0000{i}-of-00006.parquet" for i in range(6)]
    before = [name.read_bytes() for name in names]
    for number in missing:
        names[number].unlink()
    read, rows = embed_items.iter_batches, []

    def counted(*arguments, **more):
        for batch in read(*arguments, **more):
            rows.extend(batch.column("pid").to_pylist())
            yield batch

    monkeypatch.setattr(embed_items.Texts, "check_rows", lambda self: None)
    monkeypatch.setattr(embed_items, "iter_batches", counted)
    main([*argv(catalogue, tmp_path / "out"), *flags])
    assert [name.read_bytes() for name in names] == before
    # Row groups: 0-2, 3-5, 6-8, 9, 10-12, 13-15, 16.
    assert rows == {(4,): [*range(10, 16)], (1, 5): [3, 4, 5, 13, 14, 15, 16]}.get(tuple(missing), [*range(17)])


def test_a_shard_of_no_item_stands_empty(catalogue, tmp_path):
    texts = pa.array(["a", "b", None, None, "c", "d"], pa.string())
    write_table(tmp_path / "in.parquet", pa.table({"pid": range(6), "caption": texts}))
    write_table(tmp_path / "co.parquet", embedding_table([4], np.ones((1, 2), np.float32)))
    flags = as_flags(input=tmp_path / "in.parquet", shard_rows=2, max_bad_ratio=0.5, concat=tmp_path / "co.parquet")
    main([*argv(catalogue, tmp_path / "out"), *flags])
    assert [pq.read_table(file).num_rows for file in sorted((tmp_path / "out").glob("*.parquet"))] == [2, 0, 2]
    noted = Manifest("test")
    assert [len(pids) for pids, _ in iter_embeddings(tmp_path / "out", 18, noted)] == [2, 2] and not noted.dropped


def test_a_template_without_its_column_is_one_line(catalogue, tmp_path):
    for template, match in (("{title}", "has no column title; it has pid, caption"), ("nothing", "names no column")):
        with pytest.raises(InputError, match=match):
            main(argv(catalogue, tmp_path / "o.parquet", "--template", template))


@pytest.mark.slow
def test_several_processes_give_the_bytes_of_one(catalogue, tmp_path):
    main(argv(catalogue, tmp_path / "one.parquet"))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = torchrun(2, ROOT / "tokenizer/embed_items.py")
    subprocess.run([*command, *argv(catalogue, tmp_path / "two.parquet")], env=env, check=True, timeout=1800)
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    dropped = [json.loads((tmp_path / f"{name}.manifest.json").read_text())["dropped"] for name in ("one", "two")]
    assert dropped[0] == dropped[1] and sum(dropped[0].values()) == 2


def test_overwrite_removes_shards_alone(catalogue, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"holds other files \(thesis.txt\); give a new folder"):
        main(argv(catalogue, out, "--overwrite"))
    (out / "thesis.txt").unlink()
    main(argv(catalogue, out))
    (out / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds other files"):
        main(argv(catalogue, out, "--overwrite", "--dim", "8"))
    assert (out / "thesis.txt").exists()


@pytest.mark.parametrize("at", range(1, 6, 2))
def test_a_kill_while_the_shards_of_a_finished_file_go_stops_no_other_run(catalogue, tmp_path, monkeypatch, at):
    class Killed(BaseException):
        pass

    def kill(path):
        calls = []

        def call(*arguments, **more):
            calls.append(arguments)
            if len(calls) == at:
                raise Killed
            return unlink(*arguments, **more)

        unlink = os.unlink
        monkeypatch.setattr(os, "unlink", call)
        remove(path)

    from tokenizer import embed_items

    remove = embed_items.remove_folder
    monkeypatch.setattr(embed_items, "remove_folder", kill)
    with pytest.raises(Killed):
        main(argv(catalogue, tmp_path / "out.parquet"))
    monkeypatch.undo()
    main(argv(catalogue, tmp_path / "out.parquet"))
    assert not (tmp_path / ".out.shards").exists()
