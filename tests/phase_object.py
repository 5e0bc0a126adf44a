"""An independent little simulator for tests: a periodic phase object, one FFT per probe position, no abTEM."""

from __future__ import annotations

import numpy as np
import xarray as xr

import misr
from misr.optics import aberration_phase, electron_wavelength


def bandlimited_phase(shape, pixel_A, *, rng, strength=0.05, cutoff=1.2):
    """Random real phase (rad) with flat power up to ``cutoff`` 1/Å, zero mean."""
    noise = np.fft.fft2(np.random.default_rng(rng).standard_normal(shape))
    q = np.hypot(np.fft.fftfreq(shape[0], pixel_A)[:, None], np.fft.fftfreq(shape[1], pixel_A)[None])
    noise[(q > cutoff) | (q == 0)] = 0
    phase = np.fft.ifft2(noise).real
    return strength * phase / phase.std()


def phase_object_cube(
    phase,
    pixel_A,
    *,
    every=(4, 4),
    energy_eV=300e3,
    semiangle_mrad=10.0,
    aberrations=None,
    det_bin=2,
    dose_e_per_A2=1.0,
):
    """Expected counts of a periodic phase object, probe positions on every n-th pixel, and the truth."""
    wavelength = electron_wavelength(energy_eV)
    n_y, n_x = phase.shape
    k_y, k_x = np.fft.fftfreq(n_y, pixel_A)[:, None], np.fft.fftfreq(n_x, pixel_A)[None]
    inside = np.hypot(k_y, k_x) * wavelength * 1e3 < semiangle_mrad
    probe_k = inside * np.exp(-1j * aberration_phase(k_y, k_x, aberrations=aberrations or {}, wavelength=wavelength))
    probe_k = probe_k / np.sqrt((np.abs(probe_k) ** 2).sum())
    transmission = np.exp(1j * phase)
    half = [int(2 * semiangle_mrad * 1e-3 / wavelength * n * pixel_A / det_bin) for n in (n_y, n_x)]
    keep = [np.arange(-h * det_bin, h * det_bin) for h in half]
    counts = np.empty((n_y // every[0], n_x // every[1], 2 * half[0], 2 * half[1]), dtype=np.float32)
    for i in range(counts.shape[0]):
        for j in range(counts.shape[1]):
            ramp = np.exp(-2j * np.pi * (k_y * i * every[0] + k_x * j * every[1]) * pixel_A)
            exit_wave = np.fft.ifft2(probe_k * ramp) * transmission
            pattern = np.abs(np.fft.fft2(exit_wave)) ** 2
            window = pattern[np.ix_(keep[0] % n_y, keep[1] % n_x)]
            counts[i, j] = window.reshape(2 * half[0], det_bin, 2 * half[1], det_bin).sum(axis=(1, 3))
    step = (every[0] * pixel_A, every[1] * pixel_A)
    det_step = [det_bin * wavelength / (n * pixel_A) * 1e3 for n in (n_y, n_x)]
    cube = misr.cube_from_array(
        counts * np.float32(dose_e_per_A2 * step[0] * step[1]),
        scan_step_A=step,
        det_step_mrad=tuple(det_step),
        energy_eV=energy_eV,
        semiangle_mrad=semiangle_mrad,
        dose_e_per_A2=dose_e_per_A2,
        aberrations=aberrations,
    )
    for axis, name in enumerate(("det_y", "det_x")):
        # bins of native pixels -h b … h b - 1: the pixel centres lie half a native pixel off for even bins
        native = keep[axis].reshape(-1, det_bin).mean(axis=1) * det_step[axis] / det_bin
        cube = cube.assign_coords({name: (name, native, {"units": "mrad"})})
    cube.attrs["periodic"] = 1
    truth = xr.DataArray(
        phase,
        dims=("y", "x"),
        coords={d: (d, pixel_A * np.arange(n), {"units": "Å"}) for d, n in zip(("y", "x"), phase.shape, strict=True)},
    )
    return cube, truth
