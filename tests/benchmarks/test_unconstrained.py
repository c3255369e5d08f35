"""Search without the catalogue: all combinations of codes, of which those that are no item fall out."""

import pytest

from benchmarks.catalogues import every_sid
from benchmarks.evaluate import main
from benchmarks.results import load_predictions
from onerec.errors import InputError
from onerec.sid import SidSpec
from tests.arguments import as_flags


def predictions(checkpoint, data, folder, *more):
    main(
        as_flags(
            *more,
            model_path=checkpoint,
            result_name="x",
            data_dir=data,
            output_dir=folder,
            tasks="video",
            free_sids=0,
            bootstrap=0,
        )
    )
    return load_predictions(folder / "results_x", "video")


def test_an_exhaustive_search_of_either_kind_ranks_the_items_alike(tiny_checkpoint, tiny_data, tmp_path):
    inside = predictions(tiny_checkpoint, tiny_data, tmp_path / "a", "--num_beams", "16")
    outside = predictions(tiny_checkpoint, tiny_data, tmp_path / "b", "--num_beams", "64", "--unconstrained")
    assert len(inside) == len(outside) == 12
    for one, other in zip(inside, outside, strict=True):
        assert len(one["sids"]) == 16 and len(other["sids"]) == 64
        assert one["items"] == other["items"] and len(other["items"]) == 16


def test_a_narrow_search_spends_beams_on_what_is_no_item(tiny_checkpoint, tiny_data, tmp_path):
    lines = predictions(tiny_checkpoint, tiny_data, tmp_path, "--num_beams", "12", "--unconstrained")
    assert all(len(line["sids"]) == 12 for line in lines)
    # The catalogue's SIDs have 0 as their last code.
    items = [sum(sid[2] == 0 for sid in line["sids"]) for line in lines]
    assert [len(line["items"]) for line in lines] == items and min(items) < 12


def test_every_sid_is_every_combination_and_too_many_are_refused():
    index = every_sid(SidSpec((2, 3)))
    assert index.sids.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]] and index.n_items == 6
    with pytest.raises(InputError, match="has 16,777,216 SIDs to search"):
        every_sid(SidSpec((256, 256, 256)))
