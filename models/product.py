"""Products of matrices whose entries are each summed in one order, wherever they stand, on every processor.

Libraries choose how to sum by where an entry stands in the result and how large that is: what is said of a
window would then depend, in its last digits, on what else is encoded.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def product(left: Float32, right: Float32, out: Float32) -> None:
    """Write the product of ``left`` ``(n, k)`` and ``right`` ``(k, m)`` into ``out`` ``(n, m)``, all float32.

    Each entry is summed from the first term to the last, rounded once a term. Four rows and four terms go
    together, because what is read of ``right`` then serves 16 times while it is in registers.
    """
    rows, terms = left.shape
    columns = right.shape[1]
    together, whole = rows // 4 * 4, terms // 4 * 4
    out[:] = 0
    for i in range(0, together, 4):
        a, b, c, d = left[i], left[i + 1], left[i + 2], left[i + 3]
        out_a, out_b, out_c, out_d = out[i], out[i + 1], out[i + 2], out[i + 3]
        for k in range(0, whole, 4):
            a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
            b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
            c0, c1, c2, c3 = c[k], c[k + 1], c[k + 2], c[k + 3]
            d0, d1, d2, d3 = d[k], d[k + 1], d[k + 2], d[k + 3]
            right_0, right_1, right_2, right_3 = right[k], right[k + 1], right[k + 2], right[k + 3]
            for j in range(columns):
                x0, x1, x2, x3 = right_0[j], right_1[j], right_2[j], right_3[j]
                out_a[j] = (((out_a[j] + a0 * x0) + a1 * x1) + a2 * x2) + a3 * x3
                out_b[j] = (((out_b[j] + b0 * x0) + b1 * x1) + b2 * x2) + b3 * x3
                out_c[j] = (((out_c[j] + c0 * x0) + c1 * x1) + c2 * x2) + c3 * x3
                out_d[j] = (((out_d[j] + d0 * x0) + d1 * x1) + d2 * x2) + d3 * x3
        for k in range(whole, terms):
            a0, b0, c0, d0, right_0 = a[k], b[k], c[k], d[k], right[k]
            for j in range(columns):
                out_a[j] += a0 * right_0[j]
                out_b[j] += b0 * right_0[j]
                out_c[j] += c0 * right_0[j]
                out_d[j] += d0 * right_0[j]
    for i in range(together, rows):
        a, out_a = left[i], out[i]
        for k in range(terms):
            a0, right_0 = a[k], right[k]
            for j in range(columns):
                out_a[j] += a0 * right_0[j]
