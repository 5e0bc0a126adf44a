"""The inner loop of `misr.fusion.plane_waves`, compiled: each overlap value is computed in registers and written once.

Several times faster than torch's pass per operation on a CPU. Compiling takes a second or two, once per machine (numba
keeps the result), so only sums that take longer are worth it (`misr.fusion.statistic`).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["overlap_block"]

_PER_TURN, _TURN = np.float32(1 / (2 * np.pi)), np.float32(2 * np.pi)
_HALF = np.float32(0.5)
# Taylor series of sin x / x and cos x in x²: what is cut off is below single precision up to half a turn
_SIN = tuple(np.float32(value) for value in (1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -2.5052108e-8, 1.6059044e-10,
                                             -7.6471637e-13, 2.8114573e-15))  # fmt: skip
_COS = tuple(np.float32(value) for value in (1, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -2.7557319e-7, 2.0876757e-9,
                                             -1.1470746e-11, 4.7794773e-14, -1.5619207e-16))  # fmt: skip


def _compiled(function: Any) -> Any:
    options: dict[str, Any] = {"fastmath": True, "nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(function)


@_compiled
def overlap_block(out: Any, strides: Any, table: Any, columns: Any, pixels: Any, edge: Any) -> None:
    """Γ of some pixels at some frequencies, see `misr.fusion.plane_waves.PlaneWaves`.

    Parameters
    ----------
    out : numpy.ndarray
        float32 (any,): real and imaginary parts.
    strides : tuple of int
        Aliases of a scan frequency; distance in ``out`` of two scan frequencies and of two aliases.
    table : numpy.ndarray
        float32 (frequency, column), from `misr.fusion.plane_waves.plane_wave_table`.
    columns : tuple of int
        Where in it the terms of the aperture begin, those of the phase, and the two factors.
    pixels : numpy.ndarray
        float32 (6, pixel): k², k_y, k_x, row, column, and what each pixel's Γ is multiplied by.
    edge : numpy.ndarray
        float32 (3,): least argument, curvature and rest of the aperture's edge.
    """
    aliases, per_scan_frequency, per_alias = strides
    at_square, at_phase, at_factors = columns
    least, bend, rest = edge[0], edge[1], edge[2]
    none = np.float32(0)
    all_of_it = np.float32(1)
    # one by one: unpacked, they would not be known to be contiguous
    square, k_y, k_x = pixels[0], pixels[1], pixels[2]
    row, column, factor = pixels[3], pixels[4], pixels[5]
    for i in range(len(table)):
        start, per_row, per_column = table[i, at_phase], table[i, at_phase + 1], table[i, at_phase + 2]
        base, per_square = table[i, at_square], table[i, at_square + 1]
        per_y, per_x = table[i, at_square + 2], table[i, at_square + 3]
        even_factor, odd_factor = table[i, at_factors], table[i, at_factors + 1]
        at = (i // aliases) * per_scan_frequency + (i % aliases) * per_alias
        line = out[at : at + 2 * len(square)]
        for p in range(len(square)):
            # library sines are not computed several at a time, series are
            turns = (start + per_row * row[p] + per_column * column[p]) * _PER_TURN
            x = (turns - np.floor(turns + _HALF)) * _TURN
            s = x * x
            wave_im = x * (_SIN[0] + s * (_SIN[1] + s * (_SIN[2] + s * (_SIN[3] + s * (_SIN[4] + s * (_SIN[5] + s * (
                _SIN[6] + s * (_SIN[7] + s * _SIN[8]))))))))  # fmt: skip
            wave_re = _COS[0] + s * (_COS[1] + s * (_COS[2] + s * (_COS[3] + s * (_COS[4] + s * (_COS[5] + s * (
                _COS[6] + s * (_COS[7] + s * (_COS[8] + s * _COS[9]))))))))  # fmt: skip
            level = base - per_square * square[p]
            slope = per_y * k_y[p] + per_x * k_x[p]
            minus_x, plus_x = max(level + slope, least), max(level - slope, least)
            minus = min(max(rest + bend * minus_x * minus_x, none), all_of_it) * factor[p]
            plus = min(max(rest + bend * plus_x * plus_x, none), all_of_it) * factor[p]
            re, im = (minus + plus) * even_factor, (minus - plus) * odd_factor
            line[2 * p] = re * wave_re - im * wave_im
            line[2 * p + 1] = re * wave_im + im * wave_re
