"""Columns of numbers as strangers store them, for property tests of whatever reads columns."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LOW, HIGH = -(2**63), 2**63 - 1
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATS = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}
DECIMALS = [pa.decimal32(9, 2), pa.decimal64(18, 3), pa.decimal128(38, 5), pa.decimal256(60, 1)]
PROPERTY = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _bounds(kind: pa.DataType) -> tuple[int, int]:
    signed = pa.types.is_signed_integer(kind)
    return (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1) if signed else (0, 2**kind.bit_width - 1)


@st.composite
def number_types(draw) -> tuple[pa.DataType, st.SearchStrategy]:
    """A type in which numbers may be stored, and its values."""
    sort = draw(st.sampled_from(["integer", "float", "decimal", "category"]))
    if sort == "float":
        kind = draw(st.sampled_from(list(FLOATS)))
        wide = st.floats(width=kind.bit_width)
        return kind, st.one_of(
            wide, st.integers(-3000, 3000).map(float).filter(lambda x: kind.bit_width > 16 or abs(x) <= 2048)
        )
    if sort == "decimal":
        kind = draw(st.sampled_from(DECIMALS))
        most = 10**kind.precision - 1
        digits = st.one_of(st.integers(-most, most), st.integers(-999, 999).map(lambda x: x * 10**kind.scale))
        return kind, digits.filter(lambda x: abs(x) <= most).map(
            lambda x: Decimal(x).scaleb(-kind.scale) if abs(x) < 10**27 else Decimal(f"{x}E-{kind.scale}")
        )
    kind = draw(st.sampled_from(INTEGERS))
    low, high = _bounds(kind)
    values = st.one_of(st.integers(low, high), st.sampled_from([low, high]))
    return (pa.dictionary(pa.int32(), kind) if sort == "category" else kind), values


def exact(value: object, kind: pa.DataType) -> int | None:
    """The whole number that a stored value surely is; None where it is none of 64 bits."""
    if isinstance(value, float):
        if not math.isfinite(value) or value != int(value) or abs(value) >= FLOATS[kind]:
            return None
    elif isinstance(value, Decimal) and value != value.to_integral_value():
        return None
    return int(value) if LOW <= int(value) <= HIGH else None


def stored(values: list, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    if kind == pa.float16():
        return pa.array([None if v is None else np.float16(v) for v in values], kind)
    return pa.array(values, kind)


@st.composite
def integer_columns(draw) -> tuple[pa.Array, list[int | None], list[bool]]:
    """(a column, its exact values or None, where a value is no whole number)."""
    kind, values = draw(number_types())
    given_values = draw(st.lists(st.none() | values, min_size=1, max_size=8))
    array = stored(given_values, kind)
    seen = array.to_pylist()  # what the type made of the values that were drawn
    found = [
        None if value is None else exact(float(value) if isinstance(value, np.floating) else value, kind)
        for value in seen
    ]
    return (
        array,
        found,
        [value is not None and number is None for value, number in zip(seen, found, strict=True)],
    )
