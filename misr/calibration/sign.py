"""Which of a twin pair is right: matter has positive phase.

Defocus, astigmatism and phase all negated, with the detector turned by 180°, give the same data exactly: the complex
conjugate of wave and probe. Only what is known of the specimen decides, and that is that atoms are bumps, not pits:
the phase has positive skewness. The frequencies are weighted for the sharpest test there is against noise when the
specimen is a heap of like atoms, whose bispectrum is the product of three form factors.

How much skewness comes by chance is found by giving the Fourier coefficients random phases. Coefficients in one cell of
the frequency plane keep their relation, since those of one reflection of a crystallite are not independent: a
reflection counts once, however sharp it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import ifft2, next_fast_len
from scipy.special import ndtr

from misr.calibration.refine import Alignment, MatchedFilter
from misr.calibration.spectra import Spectra

__all__ = ["Skewness", "skewness_of"]

_CELL = 0.06  # 1/Å: as wide as a reflection of a 16 Å crystallite, and narrower than the lattices of light matter
_AT_ONCE = 4000  # frequencies
_SETTLED = 5  # surrogates beyond the image itself: it is clear by then that chance may do it


@dataclass(frozen=True)
class Skewness:
    """Skewness in standard deviations of chance, and how often chance gives as much with the same sign."""

    score: float
    chance: float


def skewness_of(
    spectra: Spectra, alignment: Alignment, *, surrogates: int = 200, rng: int | np.random.Generator = 0
) -> Skewness:
    """Skewness of the phase image at an alignment, against that of images with scrambled phases.

    Parameters
    ----------
    spectra : Spectra
        Up to as high frequencies as there are: atoms are sharp.
    alignment : Alignment
        Fitted.
    surrogates : int
        Number of scrambled images, at most: fewer where chance often does as much.
    rng : int or numpy.random.Generator
        Of the scrambling (SPEC 7).

    Returns
    -------
    Skewness
        Positive where the alignment gives bumps.
    """
    generator = np.random.default_rng(rng)
    points = _points(spectra, alignment)
    number = len(points) // spectra.tiles
    parts = [slice(tile * number, (tile + 1) * number) for tile in range(spectra.tiles)]
    kept = np.abs(points) > 1e-3 * np.abs(points).max()
    reach = float(spectra.q[kept].max()) if kept.any() else 0.0
    kept = spectra.q <= reach
    q_y, q_x = spectra.q_y, spectra.q_x

    def cube_mean(values: np.ndarray) -> float:
        images = (_image(values[p][kept[p]], q_y[p][kept[p]], q_x[p][kept[p]], spectra.tile_A) for p in parts)
        return sum(float((image**3).mean()) for image in images)

    own = cube_mean(points)
    chance: list[float] = []
    for _ in range(surrogates):
        chance.append(abs(cube_mean(points * _scramble(q_y, q_x, generator))))
        # scrambled images come with either sign alike: both tails serve
        exceeding = sum(value >= abs(own) for value in chance) / 2
        if exceeding >= _SETTLED:
            break
    spread = max(float(np.sqrt(np.mean(np.square(chance)))), 1e-300)
    # few independent triplets of reflections have a bounded sum, whose tails say little: no rarer than a Gaussian's
    return Skewness(own / spread, max((exceeding + 0.5) / (len(chance) + 1), float(ndtr(-abs(own) / spread))))


def _points(spectra: Spectra, alignment: Alignment) -> np.ndarray:
    """Fourier coefficients of the phase, shrunk towards zero by what is noise, with atoms taken as points."""
    prior = spectra.prior()
    v, variance = [], []
    for first in range(0, len(spectra.q_y), _AT_ONCE):
        filtered = MatchedFilter(spectra.part(slice(first, first + _AT_ONCE)))(alignment)
        v.append(filtered.v)
        variance.append(filtered.variance)
    energy, noise = np.concatenate(v), np.concatenate(variance)
    evidence = prior.evidence(energy, noise)
    shrink = (evidence.share * evidence.power / (1 + evidence.power * noise[:, None])).sum(1)
    return energy * shrink / np.sqrt(prior.form)


def _scramble(q_y: np.ndarray, q_x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A phase factor for each cell of the half plane, the cells' corner at random."""
    offset = generator.uniform(size=2)
    cell_y, cell_x = (np.floor(q / _CELL + o).astype(int) for q, o in zip((q_y, q_x), offset, strict=True))
    cell_y, cell_x = cell_y - cell_y.min(), cell_x - cell_x.min()
    phases = generator.uniform(0, 2 * np.pi, size=(cell_y.max() + 1, cell_x.max() + 1))
    return np.exp(1j * phases[cell_y, cell_x])


def _image(values: np.ndarray, q_y: np.ndarray, q_x: np.ndarray, tile_A: tuple[float, float]) -> np.ndarray:
    """Real image with these Fourier coefficients, fine enough that its cube is not aliased at zero frequency."""
    order = [np.rint(q * length).astype(int) for q, length in zip((q_y, q_x), tile_A, strict=True)]
    shape = [next_fast_len(3 * int(np.abs(m).max()) + 2) for m in order]
    spectrum = np.zeros(shape, dtype=complex)
    spectrum[order[0] % shape[0], order[1] % shape[1]] = values
    spectrum[-order[0] % shape[0], -order[1] % shape[1]] = values.conj()
    return ifft2(spectrum, norm="forward").real
