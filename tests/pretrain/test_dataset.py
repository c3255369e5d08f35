"""The dataset config, the plan of rows, and what bad data gets."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onerec.errors import InputError
from onerec.model_folder import open_model_folder
from onerec.parquet import write_table
from onerec.records import chat_record, message, parse_messages, record_uuid, write_records
from onerec.render import RENDERERS
from onerec.run import Manifest
from onerec.sid import BEGIN, END, SidSpec
from pretrain import tokenization, tokens
from pretrain.dataset import PackedDataset, load_samples, pack, shuffled
from pretrain.dataset_config import load_config
from tests.arguments import as_flags


def load(
    world: Path,
    path: Path,
    max_bad_ratio: float = 0.01,
    model: str = "base_itemic",
    token_dir: Path | None = None,
    **overrides,
):
    config = load_config(path, **overrides)
    manifest = Manifest("test")
    spec = open_model_folder(world / model).spec
    samples = load_samples(config, path, world / model, spec, manifest, max_bad_ratio, token_dir)
    return config, samples, manifest


def decode(world: Path, ids) -> str:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(world / "base_itemic").decode(ids)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"max_lenght": 3}, "unknown key max_lenght"),
        ({"max_length": "long"}, "max_length is 'long'"),
        ({"max_length": 0}, "max_length is 0"),
        ({"cut_to_pad": 7}, "cut_to_pad is 7"),
        ({"itemic_id_range": [1]}, "itemic_id_range is"),
        ({"sources": []}, "sources is"),
        ({"name": "webdataset"}, "names the loader webdataset"),
        ({"model_class": "LlamaForCausalLM"}, "names the model class"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(config_file, keys, says):
    path = config_file(**keys)
    with pytest.raises(InputError) as error:
        load_config(path)
    assert says in str(error.value) and str(path) in str(error.value)


def test_missing_files_are_named(config_file, tmp_path, world):
    with pytest.raises(InputError, match="no such file"):
        load_config(tmp_path / "absent.json")
    with pytest.raises(InputError, match=r"absent\.json"):
        load(world, config_file(sources="absent.json"))
    listing = world / "broken_list.json"
    listing.write_text(json.dumps(["rec/part-0.parquet", "rec/part-9.parquet"]))
    with pytest.raises(InputError, match=r"part-9\.parquet: is missing"):
        load(world, config_file(sources="broken_list.json"))


def test_a_shard_cut_short_is_refused(config_file, world, tmp_path):
    cut = tmp_path / "part-0.parquet"
    cut.write_bytes((world / "rec" / "part-0.parquet").read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole Parquet file"):
        load(world, config_file(sources=str(cut)))


def test_a_sid_outside_the_checkpoints_vocabulary_is_refused(config_file, world, tmp_path):
    foreign = SidSpec((9, 9, 9)).text((1, 8, 2))
    turns = [message("user", "看过" + foreign), message("assistant", "好")]
    write_records(tmp_path / "part-0.parquet", [chat_record(record_uuid("x"), "video_rec", {}, turns)])
    with pytest.raises(InputError, match="does not hold"):
        load(world, config_file(sources=str(tmp_path)))


def test_sids_for_a_checkpoint_that_was_not_expanded_are_refused(config_file, world):
    with pytest.raises(InputError, match="it has no SIDs"):
        load(world, config_file(sources="rec"), model="base")


def test_an_itemic_id_range_of_another_checkpoint_is_refused(config_file, world):
    with pytest.raises(InputError, match="itemic_id_range"):
        load(world, config_file(itemic_id_range=[151669, 176246]))


def test_a_tokenizer_that_splits_sids_is_refused(config_file, world):
    with pytest.raises(InputError, match="its tokenizer has <s_a_0> at None"):
        load(world, config_file(base_model_dir="base"))


def test_bad_rows_are_counted_and_too_many_fail(config_file, world, tmp_path):
    good = [
        chat_record(record_uuid(i), "arithmetic", {}, [message("user", "1"), message("assistant", "2")])
        for i in range(9)
    ]
    write_records(tmp_path / "part-0.parquet", [*good, good[0] | {"messages": "[{"}])
    path = config_file(sources=str(tmp_path))
    with pytest.raises(InputError, match="1 of 10 rows are bad"):
        load(world, path)
    _, samples, manifest = load(world, path, max_bad_ratio=0.2)
    assert len(samples) == 9 and dict(manifest.dropped) == {"messages is not a list": 1}


def test_long_samples_are_left_out_and_counted(config_file, world):
    _, everything, _ = load(world, config_file())
    limit = int(np.median(everything.lengths))
    _, samples, manifest = load(world, config_file(max_sample_length=limit))
    assert samples.lengths.max() <= limit
    assert manifest.dropped["longer than max_sample_length"] == int((everything.lengths > limit).sum())
    with pytest.raises(InputError, match="no sample to train on"):
        load(world, config_file(max_sample_length=2))


def test_long_samples_are_cut_where_the_config_says_so(config_file, world):
    _, everything, _ = load(world, config_file())
    limit = int(np.median(everything.lengths))
    _, samples, manifest = load(world, config_file(max_sample_length=limit, cut_long_samples=True))
    wanted = np.minimum(everything.lengths, limit)
    learns = [
        bool(everything.learn[begin + 1 : begin + n].any()) for begin, n in zip(everything.starts, wanted, strict=False)
    ]
    assert samples.lengths.tolist() == wanted[learns].tolist()
    assert manifest.extra["cut_samples"] == int((everything.lengths > limit).sum()) > 0
    assert manifest.dropped.get("longer than max_sample_length", 0) == 0
    assert manifest.dropped.get("no learnt token", 0) == learns.count(False)


def test_loss_falls_on_the_answers_alone_unless_the_config_says_otherwise(config_file, world):
    _, samples, _ = load(world, config_file(sources="rec"))
    ids, learn = samples.ids[: samples.starts[1]], samples.learn[: samples.starts[1]]
    learnt = decode(world, ids[learn])
    assert learnt.startswith("<think>\n\n</think>\n\n<|sid_begin|>") and learnt.endswith("<|sid_end|><|im_end|>")
    _, samples, _ = load(world, config_file(sources="rec", only_assistant_loss=False))
    assert samples.learn.all()


def test_the_think_switch_follows_the_answer(config_file, world):
    def text(**keys) -> str:
        _, samples, _ = load(world, config_file(sources="general", **keys))
        return decode(world, samples.ids)

    on, off = text(), text(add_think_pattern=False)
    assert on.count("？/think") == 10 and on.count("？/no_think") == 20
    assert "/think<" not in off and "/no_think" not in off


def test_token_ids_are_those_of_the_chat_template(config_file, world):
    from transformers import AutoTokenizer

    from onerec.parquet import read_table

    tokenizer = AutoTokenizer.from_pretrained(world / "base_itemic")
    row = read_table(world / "rec" / "part-0.parquet").to_pylist()[0]
    messages = parse_messages(row["messages"])
    _, samples, _ = load(world, config_file(sources="rec", add_think_pattern=False))
    wanted = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert samples.ids[: samples.starts[1]].tolist() == list(wanted)
    assert RENDERERS["qwen3"].text(messages, False) == tokenizer.decode(wanted)


def test_an_epoch_holds_every_sample_once_in_an_order_of_its_own(config_file, world):
    config, samples, _ = load(world, config_file(num_epochs=2))
    dataset = PackedDataset(samples, config, seed=3)
    first, second = dataset.epoch_ends
    epochs = [
        np.concatenate([row.samples for row in dataset.rows[begin:end]]).tolist()
        for begin, end in ((0, first), (first, second))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(samples)))
    assert epochs[0] != epochs[1]
    again = PackedDataset(samples, config, seed=3)
    assert all((a.samples == b.samples).all() for a, b in zip(dataset.rows, again.rows, strict=True))
    assert PackedDataset(samples, config, seed=4).fingerprint() != dataset.fingerprint()


def test_rows_hold_whole_samples_with_positions_that_restart(config_file, world):
    config, samples, _ = load(world, config_file())
    dataset = PackedDataset(samples, config, seed=0)
    tokens = 0
    for i in range(len(dataset)):
        row = dataset[i]
        tokens += len(row["input_ids"])
        assert len(row["input_ids"]) <= 256
        assert (row["position_ids"][row["cu_seq_lens"][:-1]] == 0).all()
        assert (row["labels"][row["cu_seq_lens"][:-1]] == -100).all()
        learnt = row["labels"] != -100
        assert (row["labels"][learnt] == row["input_ids"][learnt]).all()
    assert tokens == samples.lengths.sum()


def test_cut_to_pad_fills_rows_to_the_last_token(config_file, world):
    config, samples, _ = load(world, config_file(cut_to_pad=1))
    dataset = PackedDataset(samples, config, seed=0)
    lengths = [len(dataset[i]["input_ids"]) for i in range(len(dataset))]
    assert set(lengths[:-1]) == {256}


def test_full_attention_makes_one_sample_of_a_row(config_file, world):
    config, samples, _ = load(world, config_file(full_attention=True))
    row = PackedDataset(samples, config, seed=0)[0]
    assert row["cu_seq_lens"].tolist() == [0, len(row["input_ids"])]
    assert row["position_ids"].tolist() == list(range(len(row["input_ids"])))


def test_every_process_gets_as_many_rows(config_file, world):
    config, samples, _ = load(world, config_file())
    alone = PackedDataset(samples, config, seed=0)
    world_size = len(alone) - 1
    shared = PackedDataset(samples, config, seed=0, world_size=world_size)
    assert len(shared) == 2 * world_size
    assert (shared[len(alone)]["labels"] == -100).all()  # filler: no loss, and no sample is seen twice
    assert shared.sources(len(alone)) == []


def test_steps_take_as_many_epochs_as_they_need(config_file, world):
    config, samples, _ = load(world, config_file())
    one = len(PackedDataset(samples, config, seed=0))
    dataset = PackedDataset(samples, config, seed=0, world_size=2, accumulation=3, steps=one)
    assert len(dataset) == 6 * one


@pytest.mark.parametrize(
    ("flags", "changes"),
    [({"steps": 10**9}, {}), ({"steps": 1, "accumulation": 10**9}, {}), ({}, {"num_epochs": 10**9})],
)
def test_a_plan_that_no_memory_holds_is_refused_before_it_is_made(config_file, world, flags, changes):
    config, samples, _ = load(world, config_file(**changes))
    with pytest.raises(InputError, match=r"packed rows an epoch, [0-9,]+ in all; from 1 to 50,000,000: fewer steps"):
        PackedDataset(samples, config, seed=0, **flags)


def test_a_run_of_no_sample_is_refused_and_does_not_go_round_for_ever(config_file, world):
    config, samples, _ = load(world, config_file())
    nothing = dataclasses.replace(config, source_weights=tuple((name, 0.0) for name in samples.source_names))
    with pytest.raises(InputError, match="has 0 packed rows an epoch"):
        PackedDataset(samples, nothing, seed=0, steps=1)


def test_workers_do_not_change_the_samples(config_file, world):
    _, alone, _ = load(world, config_file())
    _, many, _ = load(world, config_file(), num_workers=2)
    assert (alone.ids == many.ids).all() and (alone.learn == many.learn).all()
    assert (alone.starts == many.starts).all() and alone.source_names == many.source_names


def test_a_small_shuffle_buffer_is_a_permutation_that_stays_near():
    shard_of = np.repeat(np.arange(10), 100)
    order = shuffled(shard_of, 50, seed=1, epoch=0)
    assert sorted(order) == list(range(1000))
    assert (np.diff(shard_of[order[:100]]) != 0).sum() < 100
    first_shards = set(shard_of[order[:50]].tolist())
    assert len(first_shards) <= 3  # a buffer of 50 cannot have read beyond the second shard


def test_pack_by_hand():
    lengths = np.array([4, 3, 5, 2])
    whole = [row.samples.tolist() for row in pack(np.arange(4), lengths, 8, cut_to_pad=False)]
    assert whole == [[0, 1], [2, 3]]
    cut = [(row.samples.tolist(), row.last_length) for row in pack(np.arange(4), lengths, 6, cut_to_pad=True)]
    assert cut == [([0, 1], 2), ([2], None), ([3], None)] or cut == [([0, 1], 2), ([2, 3], None)]


def test_pieces_give_the_ids_of_the_whole_text(world):
    """Against the tokenizer itself, on texts of marks, SIDs whole and cut, combining characters and bytes."""
    from onerec.model_folder import read_tokenizer
    from pretrain.pieces import PieceTokenizer

    def foreign(token):
        raise LookupError(token)

    whole, pieces = read_tokenizer(world / "base_itemic"), PieceTokenizer(world / "base_itemic", foreign)
    spec = SidSpec.load(world / "base_itemic")
    sid = spec.text([1, 2, 3])
    rng = random.Random(0)
    texts = "<|im_start|>~<|im_end|>~<think>~user\n~用户看过~ a b~\n\n~e\u0301~\u0338x~<s_~<~12 + 7~🦊~naïve~</think>~ "
    parts = [sid, spec.tokens[0], *spec.tokens[-2:], *texts.split("~")]
    run = re.compile(rf"(?:{re.escape(BEGIN)}(?:<s_[a-c]_\d+>)+{re.escape(END)})+")
    for _ in range(400):
        text = "".join(rng.choices(parts, k=rng.randrange(1, 12)))
        expected, found = whole.encode(text, add_special_tokens=False), pieces(text)
        assert found["input_ids"] == expected.ids, text
        runs = {at: match.start() for match in run.finditer(text) for at in range(*match.span())}
        firsts = [runs.get(start, start) for start, _ in expected.offsets]
        assert found["offset_mapping"] == firsts, text
    with pytest.raises(LookupError, match="<s_a_9>"):
        pieces("看<s_a_9>。")
    with pytest.raises(LookupError, match="<s_c_7>"):
        pieces(sid.replace("<s_c_3>", "<s_c_7>"))


def test_source_weights_say_how_often_samples_come(world, config_file):
    from collections import Counter

    from pretrain.dataset import weighted

    source = np.repeat([0, 1, 2, 3], 1000)
    chosen = weighted(source, np.array([0.0, 1.0, 2.0, 0.25]), seed=0, epoch=0)
    counts = Counter(source[chosen].tolist())
    assert counts[0] == 0 and counts[1] == 1000 and counts[2] == 2000 and 180 < counts[3] < 320
    assert (np.bincount(chosen, minlength=4000)[2000:3000] == 2).all() and (np.diff(chosen) >= 0).all()
    assert not np.array_equal(chosen, weighted(source, np.array([0.0, 1.0, 2.0, 0.25]), seed=0, epoch=1))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"video": 1}, "source_weights names video; the data have"),
        ([1], "is an object of sources and numbers"),
        ({"video_rec": -1}, "is an object of sources and numbers"),
        ({"video_rec": 0, "arithmetic": 0, "facts": 0}, "leave no sample"),
    ],
)
def test_source_weights_that_cannot_be_meant_are_refused(world, tmp_path, weights, says):
    from pretrain.train import main

    value = json.loads((world / "config.json").read_text())
    value["sources"] = [str(world / "general"), str(world / "rec")]
    (tmp_path / "config.json").write_text(json.dumps({**value, "source_weights": weights}))
    with pytest.raises(InputError, match=says):
        main(
            as_flags(
                model_dir=world / "base_itemic", output_dir=tmp_path / "o", dataset_config=tmp_path / "config.json"
            )
        )
    assert not (tmp_path / "o").exists()


def test_every_sample_may_have_a_source_of_its_own():
    names = [f"page {i:05d}" for i in range(33_000)]
    ones = np.ones(len(names), np.int64)
    part = tokens.Part(ones.astype(np.int32), ones.astype(bool), ones, names[::-1], len(names), Counter(), Counter())
    samples = tokens.collect(iter([part]), tokens.Tokens())
    assert samples.source_names == names
    assert np.array_equal(samples.source, np.arange(len(names))[::-1])


def test_tokens_in_a_folder_are_those_in_memory_and_made_once(config_file, world, tmp_path, monkeypatch):
    path = config_file()
    _, memory, before = load(world, path)
    _, files, after = load(world, path, token_dir=tmp_path)
    for name in ("ids", "learn", "starts", "source", "shard"):
        assert np.array_equal(getattr(memory, name), getattr(files, name)), name
    assert isinstance(files.ids, np.memmap) and files.digest == memory.digest and files.learnt == memory.learnt
    assert before.dropped == after.dropped and before.inputs == after.inputs

    def never(job):
        raise AssertionError(f"{job.shard} was tokenized again")

    monkeypatch.setattr("pretrain.tokenization._tokenize_shard", never)
    assert load(world, path, token_dir=tmp_path)[1].digest == memory.digest
    with pytest.raises(AssertionError, match="tokenized again"):
        load(world, path, token_dir=tmp_path, only_assistant_loss=False)
    assert len(list(tmp_path.iterdir())) == 1, "other settings are other tokens, and a failed run leaves none"


def test_a_run_that_is_stopped_keeps_the_shards_that_it_has_tokenized(config_file, world, tmp_path, monkeypatch):
    path, done, original = config_file(), [], tokenization._tokenize_shard

    def stopped(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job.shard)
        return original(job)

    monkeypatch.setattr(tokenization, "_tokenize_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        load(world, path, token_dir=tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == [".shards"] and len(list(tmp_path.rglob("*.npz"))) == 2
    monkeypatch.setattr(tokenization, "_tokenize_shard", lambda job: done.append(job.shard) or original(job))
    _, files, manifest = load(world, path, token_dir=tmp_path)
    _, memory, other = load(world, path)
    assert len(done[:4]) == len(set(done[:4])) == 4 and files.digest == memory.digest
    assert np.array_equal(files.source, memory.source) and manifest.dropped == other.dropped
    assert not (tmp_path / ".shards").exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("size", [0, 100])
def test_a_shard_that_is_kept_in_part_or_gone_is_tokenized_again(config_file, world, tmp_path, monkeypatch, size):
    """A machine died before it was on disk, or another run with the same data has taken all and removed it."""
    path, original, read = config_file(), tokenization._tokenize_shard, tokenization.Part.read
    whole = load(world, path)[1]

    def write(self, file):
        file.write(b"x" * size)

    monkeypatch.setattr(tokenization.Part, "write", write)
    monkeypatch.setattr(tokenization.NamedJobs, "remove", lambda self: None)
    load(world, path, token_dir=tmp_path)
    shutil.rmtree(next(folder for folder in tmp_path.iterdir() if folder.name != ".shards"))
    monkeypatch.undo()
    done = []
    monkeypatch.setattr(tokenization, "_tokenize_shard", lambda job: done.append(job) or original(job))

    def gone(path):
        path.unlink()
        return read(path)

    monkeypatch.setattr(tokenization.Part, "read", gone if size else read)
    assert load(world, path, token_dir=tmp_path)[1].digest == whole.digest and len(done) == 4


@pytest.mark.parametrize(("name", "keeps"), [("ids.bin", 400), ("ids.bin", 401), ("learn.bin", 0), ("samples.npz", 90)])
def test_tokens_that_are_not_all_there_are_refused(config_file, world, tmp_path, name, keeps):
    """As after a copy to another machine that was cut off."""
    path = config_file()
    load(world, path, token_dir=tmp_path)
    file = next(tmp_path.iterdir()) / name
    file.write_bytes(file.read_bytes()[:keeps])
    with pytest.raises(InputError, match=r"is not whole \(.*\); remove it; it is made again"):
        load(world, path, token_dir=tmp_path)


def test_tokens_that_another_run_made_meanwhile_stay_where_they_are_mapped(config_file, world, tmp_path, monkeypatch):
    path, original, there = config_file(), tokens.collect, []

    def slower(*arguments):
        if not there:
            there.append(None)
            other = threading.Thread(target=load, args=(world, path), kwargs={"token_dir": tmp_path})
            other.start()
            other.join()
            there[0] = next(tmp_path.glob("*/ids.bin")).stat().st_ino
        return original(*arguments)

    monkeypatch.setattr(tokens, "collect", slower)
    _, files, _ = load(world, path, token_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert (folder / "ids.bin").stat().st_ino == there[0] and len(files) == 90


def test_data_are_tokenized_ahead_for_a_training(config_file, world, tmp_path, capsys, monkeypatch):
    from pretrain import tokenize_data
    from pretrain.train import main

    path = config_file()
    given = as_flags(model_dir=world / "base_itemic", dataset_config=path, token_dir=tmp_path / "tokens")
    tokenize_data.main([*given, "--num_workers", "1"])
    assert "90 samples, 5,239 tokens" in capsys.readouterr().out

    def never(job):
        raise AssertionError(f"{job.shard} was tokenized again")

    monkeypatch.setattr("pretrain.tokenization._tokenize_shard", never)
    main([*given, *as_flags(output_dir=tmp_path / "out", num_training_steps=1)])
    assert (tmp_path / "out/hf").is_dir()


def test_tokens_are_named_by_what_is_in_the_files(world, tmp_path):
    """Copies of the same data and tokenizer give one name; one SID in another's place another."""

    def name(folder, model=world / "base_itemic", **changed):
        job = tokenization.Job(folder / "part-0.parquet", str(model), str(model), None, True, False, 256)
        return tokenization.NamedJobs([dataclasses.replace(job, **changed)], tmp_path).key()

    before = name(world / "rec")
    for kind in ("rec", "base_itemic"):
        shutil.copytree(world / kind, tmp_path / kind)
    os.utime(tmp_path / "rec/part-0.parquet", (1, 1))
    assert name(tmp_path / "rec", tmp_path / "base_itemic") == before
    table = pq.read_table(world / "rec/part-0.parquet")
    texts = table["messages"].to_pylist()
    texts[0] = re.sub(r"<s_a_\d>", lambda match: "<s_a_0>" if match[0] != "<s_a_0>" else "<s_a_1>", texts[0])
    place = table.schema.get_field_index("messages")
    write_table(tmp_path / "rec/part-0.parquet", table.set_column(place, "messages", pa.array(texts)))
    others = {
        name(tmp_path / "rec"),
        name(world / "rec", sample_limit=255),
        name(world / "rec", world / "base"),
    }
    assert len(others | {before}) == 4
