"""An independent little simulator for tests: a periodic phase object, one FFT per probe position, no abTEM."""

from __future__ import annotations

import numpy as np
import scipy.fft
import xarray as xr

import misr
from misr.optics import aberration_phase, electron_wavelength

# Carbon's electron scattering factor falls to a quarter at 1 1/Å (Peng et al. 1996, Acta Cryst. A 52, 257); a
# Gaussian atom of this width does the same.
ATOM_SIGMA_A = 0.25


def bandlimited_phase(shape, pixel_A, *, rng, strength=0.05, cutoff=1.2):
    """Random real phase (rad) with flat power up to ``cutoff`` 1/Å, zero mean."""
    noise = np.fft.fft2(np.random.default_rng(rng).standard_normal(shape))
    q = np.hypot(np.fft.fftfreq(shape[0], pixel_A)[:, None], np.fft.fftfreq(shape[1], pixel_A)[None])
    noise[(q > cutoff) | (q == 0)] = 0
    phase = np.fft.ifft2(noise).real
    return strength * phase / phase.std()


def atoms_phase(shape, pixel_A, *, rng, strength=0.05, cutoff=0.98, sigma_A=ATOM_SIGMA_A, density=1.0):
    """Phase (rad) of atoms at random places (an amorphous film), up to ``cutoff`` 1/Å, zero mean.

    ``density`` in atoms per Å² of projection: 30 Å of carbon hold about 3, more than enough to overlap at 1.
    """
    field = np.array(shape) * pixel_A
    n_atoms = round(density * field[0] * field[1])
    at = np.random.default_rng(rng).uniform(0, field, (n_atoms, 2))
    q_y, q_x = np.fft.fftfreq(shape[0], pixel_A), np.fft.fftfreq(shape[1], pixel_A)
    spectrum = np.exp(-2j * np.pi * np.outer(q_y, at[:, 0])) @ np.exp(-2j * np.pi * np.outer(at[:, 1], q_x))
    q = np.hypot(q_y[:, None], q_x[None])
    spectrum *= np.exp(-2 * (np.pi * sigma_A * q) ** 2)
    spectrum[(q > cutoff) | (q == 0)] = 0
    phase = np.fft.ifft2(spectrum).real
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
    """Expected counts of a periodic phase object, probe positions on every n-th pixel, and the truth.

    The detector covers twice the semi-angle; the phase should hold nothing above 2α/λ, and the pixel be no more than
    λ/4α, so that nothing wraps round into the bright-field disk.
    """
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
    ramps_x = np.exp(-2j * np.pi * k_x * (np.arange(counts.shape[1]) * every[1] * pixel_A)[:, None])
    for i in range(counts.shape[0]):
        row_probe = probe_k * np.exp(-2j * np.pi * k_y * i * every[0] * pixel_A)
        exit_wave = scipy.fft.ifft2(row_probe * ramps_x[:, None, :]) * transmission
        wave = scipy.fft.fft2(exit_wave)[:, keep[0] % n_y][:, :, keep[1] % n_x]
        pattern = wave.real**2 + wave.imag**2
        counts[i] = pattern.reshape(-1, 2 * half[0], det_bin, 2 * half[1], det_bin).sum(axis=(2, 4))
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
    cube.attrs["period_A"] = [step[i] * cube.shape[i] for i in range(2)]
    truth = xr.DataArray(
        phase,
        dims=("y", "x"),
        coords={d: (d, pixel_A * np.arange(n), {"units": "Å"}) for d, n in zip(("y", "x"), phase.shape, strict=True)},
    )
    return cube, truth


def at_dose(cube, dose_e_per_A2, *, rng=None):
    """Poisson counts at a dose, or the expected counts themselves scaled to it (noise-free) without a seed."""
    if rng is not None:
        return misr.apply_dose(cube, dose_e_per_A2, rng=rng)
    scaled = cube * np.float32(dose_e_per_A2 / cube.attrs["dose_e_per_A2"])
    return scaled.assign_attrs(cube.attrs, dose_e_per_A2=float(dose_e_per_A2))


def quarter_turned(cube):
    """The same scan recorded on a detector that needs ``rotation_deg=90`` to come back to the scan's frame.

    `misr.optics.rotate` takes the detector vector (y, x) to (-x, y): what the turned detector has at (y, x) the
    straight one has at (-x, y).
    """
    turned = cube.copy(data=np.rot90(cube.values, k=3, axes=(2, 3)))
    # rot90 takes element [i, j] of the result from [n - 1 - j, i]: old y is minus new x, old x is new y
    y, x = cube.det_x.values, -cube.det_y.values[::-1]
    turned = turned.assign_coords(det_y=("det_y", y, {"units": "mrad"}), det_x=("det_x", x, {"units": "mrad"}))
    return turned


def as_sampled(truth, C10, *, energy_eV=300e3):
    """The phase that a continuous detector would have to see to record what `phase_object_cube` records.

    The simulator samples a detector pixel at the object's own frequency spacing where a real one integrates. Under
    defocus the mean over b samples of a pure phase ramp is sin(b u)/(b sin u), not sin(b u)/(b u), with u half of
    the ramp's step: a factor u/sin u along each axis, whatever the binning. It is 1 for fields much wider than the
    shifts.
    """
    wavelength = electron_wavelength(energy_eV)
    factor = []
    for axis, dim in enumerate(("y", "x")):
        n = truth.shape[axis]
        pixel = float(truth[dim][1] - truth[dim][0])
        half_step = np.pi * wavelength * C10 * np.fft.fftfreq(n, pixel) / (n * pixel)
        factor.append(1 / np.sinc(half_step / np.pi))
    spectrum = np.fft.fft2(truth.values) * factor[0][:, None] * factor[1][None, :]
    return truth.copy(data=np.fft.ifft2(spectrum).real)
