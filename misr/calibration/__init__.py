"""Numerics behind `misr.fit_aberrations`: spectra of the bright field, global search, refinement, confidence."""
