"""Names that RecBole 1.2 uses and NumPy has dropped; importing this puts them back. For RecBole's environment only."""

import numpy as np

_NAMES = {"float": float, "float_": np.float64, "int_": np.int64, "bool8": np.bool_, "complex_": np.complex128, "unicode_": np.str_, "string_": np.bytes_}  # fmt: skip

for _old, _new in _NAMES.items():
    if not hasattr(np, _old):
        setattr(np, _old, _new)
