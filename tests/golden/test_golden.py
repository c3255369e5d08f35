"""What the data stages and tokenization write stays the same, record by record and token by token."""

import json

from tests.golden.refresh import DIGESTS, made


def test_the_data_stages_write_what_they_wrote_before():
    before, now = json.loads(DIGESTS.read_text()), made()
    differ = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    assert not differ, "if that is meant: python tests/golden/refresh.py"
