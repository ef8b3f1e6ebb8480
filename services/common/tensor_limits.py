"""How much a signature may hold. Who reads tensors that callers send refuses more before it looks at any of them."""

from typing import Final

TENSOR_LIMIT: Final = 64
"""Inputs, and outputs, of a signature."""
RANK_LIMIT: Final = 16
"""Dimensions of a tensor, with that of the rows."""
DIMENSION_LIMIT: Final = 2**31 - 1
"""The largest dimension."""
UNNAMED_COLUMNS_LIMIT: Final = 64
"""Columns of a tensor that become features of their own in the prediction log when no signature names them; a wider one has none."""
