"""Likelihood of matched-filter energies when the object's power spectrum is not known.

At each object frequency the matched filter gives ``v = Σ_k Γ* n G`` whose noise variance is W. Were the phase there a
complex Gaussian of variance p, v would have variance ``W (1 + p W)``, and the log-likelihood against noise alone is
``|v|² p / (1 + p W) - log(1 + p W)``. The power p is not known: amorphous matter has nearly the same at all
frequencies, a crystal has huge power at a few. So it is drawn, at each frequency on its own, from a family of mixtures
(a level, and how often levels above it occur), and the family is averaged over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["ATOM", "Evidence", "PowerPrior"]

_LEVELS = 10.0 ** np.arange(-5, 4.01, 0.5)  # rad² Å²: from far below one atomic layer of carbon to large Bragg peaks
_TAILS = (None, 1.0, 0.5)  # powers above the level are rarer by level^-tail; None: there are none
_TAIL_LENGTH = 9
ATOM = 0.6  # 1/Å: the power of light atoms falls as exp(-(q/0.6)²) (Peng et al. 1996, Acta Cryst. A 52, 257)


@dataclass(frozen=True)
class Evidence:
    """Log-likelihood of all energies together, and what it says of the power at each frequency."""

    log: float
    power: np.ndarray  # (frequency, level): candidate powers
    share: np.ndarray  # (frequency, level): their posterior probabilities


class PowerPrior:
    """Mixtures of powers on a logarithmic grid, for given frequencies.

    Parameters
    ----------
    q : array
        Object frequencies, 1/Å.
    area_A2 : float
        Area of the transformed field, Å²: power densities over it are powers of Fourier coefficients.
    independent : float, default 1
        Share of the coefficients that are independent.
    envelope : array, optional
        Share of the power that the filter passes.

    Examples
    --------
    >>> import numpy as np
    >>> prior = PowerPrior(np.full(500, 0.2), area_A2=1e4)
    >>> noise = np.sqrt(1e7) * np.exp(2j * np.pi * np.linspace(0, 1, 500))
    >>> bool(prior.evidence(noise, np.full(500, 1e7)).log < 0 < prior.evidence(3 * noise, np.full(500, 1e7)).log)
    True
    """

    def __init__(
        self, q: np.ndarray, *, area_A2: float, independent: float = 1.0, envelope: np.ndarray | float = 1.0
    ) -> None:
        self.form = np.exp(-((q / ATOM) ** 2)) * envelope
        self.power = self.form[:, None] * (_LEVELS / area_A2)[None, :]
        self.independent = independent
        columns = []
        for tail in _TAILS:
            length = 1 if tail is None else _TAIL_LENGTH
            weights = (_LEVELS[:length] / _LEVELS[0]) ** -(tail or 0.0)
            for start in range(len(_LEVELS) - length + 1):
                column = np.zeros(len(_LEVELS))
                column[start : start + length] = weights / weights.sum()
                columns.append(column)
        self.mixtures = np.stack(columns, axis=1)

    def evidence(self, v: np.ndarray, variance: np.ndarray) -> Evidence:
        """Average likelihood over the family of mixtures, relative to noise alone."""
        snr = self.power * variance[:, None]
        log = (np.abs(v) ** 2)[:, None] * self.power / (1 + snr) - np.log1p(snr)
        top = log.max(axis=1, keepdims=True)
        relative = np.exp(log - top)
        mixed = np.maximum(relative @ self.mixtures, 1e-300)
        totals = self.independent * (np.log(mixed) + top).sum(axis=0)
        best = totals.max()
        chance = np.exp(totals - best)
        evidence = best + np.log(chance.mean())
        chance /= chance.sum()
        used = chance > 1e-6
        share = relative * ((chance[used] / mixed[:, used]) @ self.mixtures[:, used].T)
        return Evidence(float(evidence), self.power, share)
