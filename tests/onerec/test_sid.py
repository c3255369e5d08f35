"""The SID grammar: text, parsing, ids and the specification file."""

import json

import numpy as np
import pytest

from onerec.errors import InputError
from onerec.sid import SidSpec

RELEASE = SidSpec((8192, 8192, 8192), first_id=151669)


def test_text_is_the_published_one_and_parses_back():
    text = RELEASE.text((340, 6566, 5603))
    assert text == "<|sid_begin|><s_a_340><s_b_6566><s_c_5603><|sid_end|>"
    assert RELEASE.parse(f"看过{text}，又看了{text}") == [(340, 6566, 5603)] * 2


def test_ids_on_qwen3_are_the_published_ones():
    assert RELEASE.layer_ranges == [(151669, 159860), (159861, 168052), (168053, 176244)]
    assert (RELEASE.begin_id, RELEASE.end_id, RELEASE.id_range) == (176245, 176246, (151669, 176246))
    assert RELEASE.token_ids(np.array([0, 0, 8191])).tolist() == [151669, 159861, 176244]


def test_token_order_is_layer_by_layer_then_begin_and_end():
    assert SidSpec((2, 1)).tokens == ["<s_a_0>", "<s_a_1>", "<s_b_0>", "<|sid_begin|>", "<|sid_end|>"]


@pytest.mark.parametrize(
    "text",
    [
        "<|sid_begin|><s_a_1><s_b_1><|sid_end|>",  # a layer short
        "<|sid_begin|><s_b_1><s_a_1><s_c_1><|sid_end|>",  # wrong order
        "<s_a_1><s_b_1><s_c_1>",  # no begin and end
        "<|sid_begin|><s_a_4><s_b_1><s_c_1><|sid_end|>",  # outside its codebook
    ],
)
def test_what_is_not_a_whole_sid_does_not_parse(text):
    assert SidSpec((4, 4, 4)).parse(text) == []


def test_codes_outside_their_codebook_are_refused():
    with pytest.raises(ValueError, match="code 4 of layer b is outside 0 to 3"):
        SidSpec((4, 4, 4)).text((0, 4, 0))
    with pytest.raises(ValueError, match="has 2 codes"):
        SidSpec((4, 4, 4)).text((0, 1))


def test_specification_survives_the_file(tmp_path):
    for spec in (SidSpec((32, 32, 32), collision="extra_layer"), RELEASE):
        spec.save(tmp_path)
        assert SidSpec.load(tmp_path) == spec


@pytest.mark.parametrize("broken", [[], {"codebook_sizes": [0]}, {"codebook_sizes": [4], "layers": 2}, {"layers": 3}])
def test_a_file_that_is_not_a_specification_is_refused(tmp_path, broken):
    (tmp_path / "sid_spec.json").write_text(json.dumps(broken))
    with pytest.raises(InputError, match=r"sid_spec\.json: "):
        SidSpec.load(tmp_path)
