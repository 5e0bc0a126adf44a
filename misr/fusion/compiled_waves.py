"""The inner loops of the linear fusion, compiled: overlap values are computed in registers, and summed in the cache.

Several times faster than torch's pass per operation on a CPU. Compiling takes a few seconds, once per machine (numba
keeps the result), so only sums that take longer are worth it (`misr.fusion.statistic`).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["LANES", "add_tile", "overlap_block"]

LANES = 16  # patches are filled up to multiples of it: no remainders, whatever the processor computes at once
_TOGETHER = 48  # neighbouring scan frequencies whose spectra are gathered at once
_HALF, _NONE, _ONE, _TWO = np.float32(0.5), np.float32(0), np.float32(1), np.float32(2)
# sin πt / t and cos πt in t², least maximum error (below 5e-8) up to a quarter turn
_SIN = tuple(np.float32(value) for value in (3.14159264, -5.16771009, 2.55007766, -0.598292159, 0.0776594082))
_COS = tuple(np.float32(value) for value in (0.999999953, -4.93479286, 4.05841191, -1.33188016, 0.219696798))


def _compiled(function: Any) -> Any:
    options: dict[str, Any] = {"fastmath": True, "nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(function)


@_compiled
def _overlap_line(re: Any, im: Any, k_y: Any, k_x: Any, factor: Any, row: Any, columns: Any, edge: Any) -> None:
    """Γ of some pixels at one frequency.

    All arrays are contiguous and few: the compiler must show that what is written is not read.
    """
    at_square, at_slope, at_factors = columns
    base, per_square, per_y, per_x = row[at_square], row[at_square + 1], row[at_square + 2], row[at_square + 3]
    turns_y, turns_x = row[at_slope], row[at_slope + 1]
    even_factor, odd_factor = row[at_factors], row[at_factors + 1]
    least, bend, rest = edge[0], edge[1], edge[2]
    for p in range(len(re)):
        y, x = k_y[p], k_x[p]
        # library sines are not computed several at a time, series are: those of half the angle
        turns = turns_y * y + turns_x * x
        t = turns - np.floor(turns + _HALF)
        s = t * t
        sin = t * (_SIN[0] + s * (_SIN[1] + s * (_SIN[2] + s * (_SIN[3] + s * _SIN[4]))))
        cos = _COS[0] + s * (_COS[1] + s * (_COS[2] + s * (_COS[3] + s * _COS[4])))
        wave_re, wave_im = _ONE - _TWO * sin * sin, _TWO * sin * cos
        level = base - per_square * (y * y + x * x)
        slope = per_y * y + per_x * x
        minus_x, plus_x = max(level + slope, least), max(level - slope, least)
        minus = min(max(rest + bend * minus_x * minus_x, _NONE), _ONE)
        plus = min(max(rest + bend * plus_x * plus_x, _NONE), _ONE)
        even, odd = (minus + plus) * (even_factor * factor[p]), (minus - plus) * (odd_factor * factor[p])
        re[p] = even * wave_re - odd * wave_im
        im[p] = even * wave_im + odd * wave_re


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
        float32 (3, pixel): k_y, k_x, and what each pixel's Γ is multiplied by.
    edge : numpy.ndarray
        float32 (3,): least argument, curvature and rest of the aperture's edge.
    """
    aliases, per_scan_frequency, per_alias = strides
    k_y, k_x, factor = pixels[0], pixels[1], pixels[2]
    re, im = np.empty(len(k_y), np.float32), np.empty(len(k_y), np.float32)
    for i in range(len(table)):
        _overlap_line(re, im, k_y, k_x, factor, table[i], columns, edge)
        at = (i // aliases) * per_scan_frequency + (i % aliases) * per_alias
        line = out[at : at + 2 * len(re)]
        for p in range(len(re)):
            line[2 * p] = re[p]
            line[2 * p + 1] = im[p]


@_compiled
def _clear(re: Any, im: Any) -> None:
    for i in range(len(re)):  # assigning to slices takes seconds to compile
        re[i], im[i] = _NONE, _NONE


@_compiled
def _gather(into: Any, spectra: Any, scale: Any, bounds: Any, at: Any) -> None:
    """Some scan frequencies of all views, (view, frequency), as (frequency, slot of the view), patch by patch."""
    into_re, into_im = into[0], into[1]
    first = 0
    for patch in range(len(bounds)):
        slot, last = bounds[patch, 2], first + bounds[patch, 4]
        for begin in range(first, last, LANES):
            end = min(begin + LANES, last)
            by = scale[begin:end]
            for t in range(len(at)):
                re, im = into_re[t, slot : slot + end - begin], into_im[t, slot : slot + end - begin]
                for view in range(end - begin):
                    re[view] = spectra[begin + view, at[t], 0] * by[view]
                    im[view] = spectra[begin + view, at[t], 1] * by[view]
            slot += end - begin
        first = last


@_compiled
def _add_four(found: Any, places: Any, at: int, other: int, re: Any, im: Any) -> None:
    """Add ``Σ a* b`` for a row ``a`` of ``at`` and the next one, ``b`` of ``other`` and the next one, to their places.

    Four at a time, each value is loaded once for two of them.
    """
    a_re, a_im, b_re, b_im = re[at], im[at], re[at + 1], im[at + 1]
    c_re, c_im, d_re, d_im = re[other], im[other], re[other + 1], im[other + 1]
    ac_re = ac_im = ad_re = ad_im = bc_re = bc_im = bd_re = bd_im = _NONE
    for k in range(len(a_re)):
        a, a_, b, b_, c, c_, d, d_ = a_re[k], a_im[k], b_re[k], b_im[k], c_re[k], c_im[k], d_re[k], d_im[k]
        ac_re += a * c + a_ * c_
        ac_im += a * c_ - a_ * c
        ad_re += a * d + a_ * d_
        ad_im += a * d_ - a_ * d
        bc_re += b * c + b_ * c_
        bc_im += b * c_ - b_ * c
        bd_re += b * d + b_ * d_
        bd_im += b * d_ - b_ * d
    i, next_i, j, next_j = places[at], places[at + 1], places[other], places[other + 1]
    found[0, i, j] += ac_re
    found[1, i, j] += ac_im
    found[0, i, next_j] += ad_re
    found[1, i, next_j] += ad_im
    if at != other:
        found[0, next_i, j] += bc_re
        found[1, next_i, j] += bc_im
    found[0, next_i, next_j] += bd_re
    found[1, next_i, next_j] += bd_im


@_compiled
def _add_found(f: int, found: Any, sums: Any) -> None:
    """Add the products of a scan frequency, of which the first row is the spectra's, to its sums."""
    vector, matrix, energy = sums
    energy[f] += found[0, 0, 0]
    for j in range(vector.shape[1]):
        vector[f, j, 0] += found[0, 0, j + 1]
        vector[f, j, 1] -= found[1, 0, j + 1]
    if len(matrix) == 0:
        return
    for i in range(vector.shape[1]):
        matrix[f, i, i, 0] += found[0, i + 1, i + 1]
        for j in range(i + 1, vector.shape[1]):
            # aliases come in order, channel after channel: one of the two was summed
            real = found[0, i + 1, j + 1] + found[0, j + 1, i + 1]
            imaginary = found[1, i + 1, j + 1] - found[1, j + 1, i + 1]
            matrix[f, i, j, 0] += real
            matrix[f, i, j, 1] += imaginary
            matrix[f, j, i, 0] += real
            matrix[f, j, i, 1] -= imaginary


@_compiled
def add_tile(
    at: Any, table: Any, columns: Any, spectra: Any, scale: Any, places: Any, pixels: Any, edge: Any, sums: Any
) -> None:
    """Add ``Γᴴ G`` and ``Γᴴ Γ`` over all views of a batch at some scan frequencies, see `misr.fusion.tile_sums`.

    Parameters
    ----------
    at : numpy.ndarray
        int64 (frequency,): the scan frequencies, neighbours beside one another.
    table : numpy.ndarray
        float32 (frequency, alias, column), from `misr.fusion.plane_waves.plane_wave_table`.
    columns : tuple of int
        Where in it the terms of the aperture begin, those of the phase, and the factors of the channels.
    spectra : numpy.ndarray
        float32 (view, scan frequency, 2): real and imaginary parts, the patches' views one after the other.
    scale : numpy.ndarray
        float32 (view,): the spectra are multiplied by it.
    places : tuple of numpy.ndarray
        For each patch: int64 (patch, 5), where its pixels and its slots of views begin and end, and how many views it
        has; float32 (patch, 3), its centre, and ``q² - 2 |q·centre|`` of the frequencies that reach it is less than the
        third.
    pixels : tuple of numpy.ndarray
        float32 (3, pixel), see `overlap_block`; int64 (pixel,), place of its view in the patch, or empty if each pixel
        is a view.
    edge : numpy.ndarray
        See `overlap_block`.
    sums : tuple of numpy.ndarray
        Added to: float32 (scan frequency, unknown, 2), float32 (scan frequency, unknown, unknown, 2), or empty, and
        float64 (scan frequency,).
    """
    at_square, at_slope, at_factors = columns
    bounds, reach = places
    values, member = pixels
    aliases, channels = table.shape[1], (table.shape[2] - at_factors) // 2
    unknowns = aliases * channels
    widest = (bounds[:, 3] - bounds[:, 2]).max()
    rows = np.empty((2, (unknowns + 2) * widest), np.float32)
    per_pixel = np.empty((2, (bounds[:, 1] - bounds[:, 0]).max()), np.float32)
    gathered = np.zeros((2, _TOGETHER, bounds[:, 3].max()), np.float32)
    # the spectra come first; what fills up an odd number of rows, last
    found, place = np.empty((2, unknowns + 2, unknowns + 2), np.float32), np.zeros(unknowns + 2, np.int64)
    for first in range(0, len(at), _TOGETHER):
        some = at[first : first + _TOGETHER]
        _gather(gathered, spectra, scale, bounds, some)
        for t in range(len(some)):
            _clear(found[0].ravel(), found[1].ravel())
            for patch in range(len(bounds)):
                begin, end, first_slot, last_slot = bounds[patch, :4]
                y, x, limit = reach[patch]
                size, n = last_slot - first_slot, 1
                re = rows[0, : (unknowns + 2) * size].reshape((unknowns + 2, size))
                im = rows[1, : (unknowns + 2) * size].reshape((unknowns + 2, size))
                for p in range(size):
                    re[0, p], im[0, p] = gathered[0, t, first_slot + p], gathered[1, t, first_slot + p]
                k_y, k_x, factor = values[0, begin:end], values[1, begin:end], values[2, begin:end]
                for alias in range(aliases):
                    row = table[first + t, alias]
                    if row[0] * row[0] + row[1] * row[1] - _TWO * abs(row[0] * y + row[1] * x) >= limit:
                        continue
                    for channel in range(channels):
                        within = (at_square, at_slope, at_factors + 2 * channel)
                        place[n] = 1 + alias + channel * aliases
                        if len(member) == 0:
                            _overlap_line(re[n], im[n], k_y, k_x, factor, row, within, edge)
                        else:
                            line_re, line_im = per_pixel[0, : end - begin], per_pixel[1, : end - begin]
                            _overlap_line(line_re, line_im, k_y, k_x, factor, row, within, edge)
                            _clear(re[n], im[n])
                            for p in range(end - begin):
                                re[n, member[begin + p]] += line_re[p]
                                im[n, member[begin + p]] += line_im[p]
                        n += 1
                if n % 2:
                    _clear(re[n], im[n])
                    place[n] = unknowns + 1
                # without a matrix the spectra alone are multiplied with the others
                for i in range(0, n if len(sums[1]) else 1, 2):
                    for j in range(i, n, 2):
                        _add_four(found, place, i, j, re, im)
            _add_found(some[t], found, sums)
