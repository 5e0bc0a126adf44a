"""How many electrons, which defocus, which scan step: what a scan must be to resolve a length in a specimen.

`misr.dose_for_resolution` bounds the dose from below: fine steps, fine pixels. Here the scan is the real one. Coarse
steps fold several object frequencies into each scan frequency, which the views must tell apart, and wide detector
pixels wash out the shifts that let them: both are computed, with the fusion's own
matrices (`misr._planning`).

The model is that of the bound: a weak, thin, pure phase object, optics known exactly, the object's power known, a field
much wider than the illuminated patch. Only ``|Γ|`` and relative phases enter, so defocus and overfocus need the same
dose (where the other aberrations are 0): planning one side, ``defocus = -C10 > 0``, is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from misr._measured_power import image_and_spectra
from misr._planning import ScanOptics, read_scan_optics, ring_points, scan_modes
from misr._planning_table import (
    Question,
    add_scan,
    add_status,
    check_aliases,
    check_positive,
    choose,
    concentration,
    costs,
    default_defoci,
    default_steps,
    label,
    sequence,
    specimen_words,
)
from misr._planning_words import plan_words
from misr._provenance import append_history
from misr.limits import AGAINST, as_power, dose_for_resolution
from misr.resolution import frc_threshold

__all__ = ["expected_frc_of_scan", "plan_acquisition", "plan_words"]

_PIXELS_ACROSS = 32  # of the bright-field disk, where no detector pixel is given
_SAMPLES = 16  # frequencies of each ring


def expected_frc_of_scan(
    power_or_image: xr.DataArray | xr.Dataset,
    *,
    dose_e_per_A2: float,
    scan_step_A: float,
    aberrations: Any = None,
    det_step_mrad: float | tuple[float, float] | None = None,
    energy_eV: float | None = None,
    semiangle_mrad: float | None = None,
    method: str = "linear",
    against: str = "truth",
    source_size_A: float = 0.0,
    focal_spread_A: float = 0.0,
    ring_width: float | None = None,
    window: str | None = "auto",
) -> xr.DataArray:
    """The FRC that one scan geometry allows: `misr.expected_frc` with the cost of its aliases and its pixels.

    Parameters
    ----------
    power_or_image, dose_e_per_A2, aberrations, energy_eV, semiangle_mrad, ring_width, window
        As in `misr.expected_frc`.
    scan_step_A : float
        Scan step, Å, the same along both axes.
    det_step_mrad : float or (float, float), optional
        Detector pixel, mrad; by default 32 across the bright-field disk. Its rows are parallel to the scan's.
    method : {"linear", "tcbf"}
        As in `misr.expected_frc`. "tcbf" unfolds nothing: what the aliases leave in the shifted sum acts as noise.
    against : {"truth", "half-map"}
        For half maps, what the curve owes to each frequency itself; what it *shows* is the coordinate
        ``half_maps``: frequencies folded on another repeat in both halves and pass for signal.
    source_size_A, focal_spread_A : float
        As in `misr.fuse_linear`.

    Returns
    -------
    xarray.DataArray
        ``frc`` over ``frequency``, with coordinates ``n_independent``, ``half_maps`` and ``alias_share`` (of the ring's
        power in the image, what belongs to other frequencies).

    Raises
    ------
    ValueError
        As `misr.expected_frc`, and for a step that is not positive or holds too many aliases.

    Examples
    --------
    >>> import misr
    >>> power = misr.phase_power_of_slab("carbon", field_A=32)
    >>> optics = {"dose_e_per_A2": 1000, "semiangle_mrad": 10, "aberrations": {"C10": -800}, "det_step_mrad": 1.5}
    >>> real, limit = expected_frc_of_scan(power, scan_step_A=2, **optics), misr.expected_frc(power, **optics)
    >>> bool((real < limit + 0.01).all()), real.frequency.attrs["units"]
    (True, '1/Å')
    """
    check_positive(dose_e_per_A2=dose_e_per_A2, scan_step_A=scan_step_A)
    power = as_power(power_or_image, ring_width, window)
    given: dict[str, Any] = {
        "method": method, "energy_eV": energy_eV, "semiangle_mrad": semiangle_mrad, "det_step_mrad": det_step_mrad,
        "source_size_A": source_size_A, "focal_spread_A": focal_spread_A,
    }  # fmt: skip
    optics = read_scan_optics(power, aberrations=aberrations, pixels_across=_PIXELS_ACROSS, **given)
    _check_against(against)
    check_aliases([scan_step_A], optics)
    q, width = power["frequency"].values, float(power.attrs["ring_width"])
    curves = np.zeros((3, len(q)))
    for ring in np.flatnonzero(q - width / 2 < 2 * optics.cutoff):
        points = ring_points(q[[ring]], width, _SAMPLES)
        modes = scan_modes(*points, step_A=scan_step_A, power=power, optics=optics)
        found = (
            modes.correlation(dose_e_per_A2, against),
            modes.half_maps(dose_e_per_A2),
            modes.alias_share(dose_e_per_A2),
        )
        curves[:, ring] = np.concatenate(found)
    coords = {
        "frequency": power["frequency"],
        "n_independent": power["n_independent"],
        "half_maps": ("frequency", curves[1], {"units": "1", "long_name": "FRC that half maps show"}),
        "alias_share": ("frequency", curves[2], {"units": "1", "long_name": "share of other frequencies"}),
    }
    attrs: dict[str, Any] = {"units": "1", "long_name": "expected FRC", "method": method, "against": against}
    attrs |= {"dose_e_per_A2": float(dose_e_per_A2), "scan_step_A": float(scan_step_A)}
    attrs |= {"ring_width": width, "band_limit": 2 * optics.cutoff}
    attrs["history"] = append_history(
        power.attrs, "expected_frc_of_scan", dose_e_per_A2=dose_e_per_A2, scan_step_A=scan_step_A, against=against,
        aberrations=dict(optics.aberrations), **given,
    )  # fmt: skip
    return xr.DataArray(curves[0], dims="frequency", coords=coords, name="frc", attrs=attrs)


def plan_acquisition(
    power_or_image: xr.DataArray | xr.Dataset,
    *,
    resolution_A: float,
    energy_eV: float | None = None,
    semiangle_mrad: float | None = None,
    defocus_A: Sequence[float] | float | None = None,
    scan_step_A: Sequence[float] | float | None = None,
    det_step_mrad: float | tuple[float, float] | None = None,
    aberrations: Any = None,
    threshold: str | float = 0.5,
    against: str = "truth",
    method: str = "linear",
    source_size_A: float = 0.0,
    focal_spread_A: float = 0.0,
    field_A: float | tuple[float, float] | None = None,
    dose_limit_e_per_A2: float | None = None,
    beam_current_pA: float | None = None,
    shortest_dwell_s: float | None = None,
    tolerance: float = 0.1,
    ring_width: float | None = None,
    window: str | None = "auto",
) -> xr.Dataset:
    """The dose that a resolution takes, for each defocus and scan step, and the scan to choose.

    Parameters
    ----------
    power_or_image : xarray.DataArray or Dataset
        The specimen: its phase power over ``frequency`` (`misr.phase_power_of_slab`, `misr.radial_power_spectrum`), or
        a phase image (rad, dims ``("y", "x")``), simulated or of high dose, for its noise would count as power; or the
        Dataset of `misr.fuse_linear`, whose noise is taken off. Beyond its frequencies the power is taken to stay as it
        is at the last one.
    resolution_A : float
        Wanted resolution, Å.
    energy_eV, semiangle_mrad : float, optional
        Beam energy and convergence semi-angle; from the attrs when not given.
    defocus_A : float or sequence of float, optional
        Defocus to compare, Å (``C10 = -defocus``). By default on one side of focus, each where ``sin²χ`` is 1 at
        1/resolution, up to where a detector pixel washes it out. The other side needs the same dose.
    scan_step_A : float or sequence of float, optional
        Scan steps to compare, Å; by default a quarter to four times the resolution.
    det_step_mrad : float or (float, float), optional
        Detector pixel, mrad; by default 32 across the bright-field disk.
    aberrations : mapping or Dataset, optional
        Polar coefficients besides the defocus, Å and rad; those in the attrs of an image do not count.
    threshold, against, method
        As in `misr.dose_for_resolution`, without "ideal".
    source_size_A, focal_spread_A : float
        As in `misr.fuse_linear`.
    field_A : float or (float, float), optional
        Field to scan, Å: for numbers of positions and electrons.
    dose_limit_e_per_A2 : float, optional
        What the specimen stands.
    beam_current_pA, shortest_dwell_s : float, optional
        Beam current, for dwell times; with the detector's shortest dwell, s, also the least dose the scan can give.
    tolerance : float, default 0.1
        The scan chosen is the coarsest, of the fewest patterns, that costs at most so much more than the least dose;
        the detector pixel likewise.
    ring_width, window
        For images, see `misr.radial_power_spectrum`.

    Returns
    -------
    xarray.Dataset
        Over ``defocus`` and ``scan_step`` (Å): ``dose`` (e/Å², of both halves together; ``inf`` where none serves),
        ``electrons_per_position`` (at the dose that is given), ``alias_cost`` (the dose over that of fine steps),
        ``alias_share`` (of the image's power at this resolution and dose, what belongs to other frequencies),
        ``half_maps`` (the FRC that half maps show there), ``status`` ("found", or what fails). Over ``defocus``:
        ``dose_fine`` (`misr.dose_for_resolution`), ``pixel_cost`` (what pixels and blurs multiply it by), ``patch``
        (diameter lit by one position, Å), ``shift_per_pixel`` (Å). Over ``det_step`` (mrad): ``dose_of_pixel`` at the
        scan chosen. Scalars: ``best_dose``, ``best_defocus``, ``best_scan_step``, ``widest_det_step``, ``dose_ideal``;
        NaN where nothing serves. With a field ``positions``, ``electrons``, ``edge_share``; with a current ``dwell``,
        ``duration`` and ``dose_given``, the dose needed or the least that the shortest dwell gives: the one that
        ``best_dose`` and all electrons are of.

    Raises
    ------
    ValueError
        For arguments out of range, optics that are not known, or a resolution outside the power's frequencies.

    Notes
    -----
    *Crystals.* A ring's power is the mean over its reflections and the nothing between: ask for a resolution at a
    reflection, with ``ring_width`` wider than the reciprocal lattice spacing. The plan is then for a prior that knows
    only the ring (``fuse_linear(prior="ring")``). One that sees the lattice needs less, down to this dose over
    ``attrs["concentration"]``, ``<|F|⁴>/2<|F|²>²`` around that resolution: 1 for amorphous matter, large for spots.

    *What is left out.* The calibration of the aberrations and the learning of the power from the same electrons, thick
    specimens, drift, damage, and the strip of width ``patch/2`` along the field's border that fewer electrons see.

    Examples
    --------
    >>> import misr
    >>> power = misr.phase_power_of_slab("carbon", thickness_A=30)
    >>> plan = plan_acquisition(power, resolution_A=2.5, semiangle_mrad=10, defocus_A=[500, 1000], scan_step_A=[2, 4])
    >>> dict(plan.dose.sizes), plan.dose.attrs["units"], str(plan.status.values[0, 0])
    ({'defocus': 2, 'scan_step': 2}, 'e/Å²', 'found')
    """
    check_positive(resolution_A=resolution_A, field_A=field_A, dose_limit_e_per_A2=dose_limit_e_per_A2)
    check_positive(beam_current_pA=beam_current_pA, shortest_dwell_s=shortest_dwell_s, tolerance=tolerance)
    if shortest_dwell_s is not None and beam_current_pA is None:
        raise ValueError("shortest_dwell_s needs beam_current_pA: together they are the least dose of a scan")
    _check_against(against)
    power = as_power(power_or_image, ring_width, window)
    beam: dict[str, Any] = {"method": method, "energy_eV": energy_eV, "semiangle_mrad": semiangle_mrad}
    blurs: dict[str, Any] = {"source_size_A": source_size_A, "focal_spread_A": focal_spread_A}
    times: dict[str, Any] = {
        "field_A": field_A,
        "beam_current_pA": beam_current_pA,
        "shortest_dwell_s": shortest_dwell_s,
    }
    wanted: dict[str, Any] = {"resolution_A": float(resolution_A), "threshold": threshold, "against": against}
    optics = read_scan_optics(
        power, aberrations={} if aberrations is None else aberrations, det_step_mrad=det_step_mrad,
        pixels_across=_PIXELS_ACROSS, **beam, **blurs,
    )  # fmt: skip
    defoci = default_defoci(resolution_A, optics) if defocus_A is None else sequence("defocus_A", defocus_A)
    steps = default_steps(resolution_A, optics) if scan_step_A is None else sequence("scan_step_A", scan_step_A)
    check_aliases(steps, optics)
    bounds = [
        dose_for_resolution(power, aberrations=at.aberrations, **beam, **wanted)
        for at in map(optics.at_defocus, defoci)
    ]
    ask = _question(power, threshold=threshold, resolution_A=resolution_A, against=against)
    plan = costs(ask, optics, defoci=defoci, steps=steps, bounds=np.array(bounds, dtype=float))
    plan["dose_ideal"] = float(dose_for_resolution(power, **(beam | wanted | {"method": "ideal"})))
    add_scan(plan, **times)
    add_status(plan, within_band=ask.frequency < 2 * optics.cutoff, dose_limit=dose_limit_e_per_A2)
    choose(plan, ask, optics, tolerance=tolerance)
    label(plan)
    plan.attrs = _attrs(optics, power, wanted | blurs | times | {"tolerance": float(tolerance)})
    image, _ = image_and_spectra(power_or_image)
    if image.dims == ("y", "x"):
        plan.attrs["concentration"] = concentration(image, ask.frequency, power)
    plan.attrs["history"] = append_history(
        power.attrs, "plan_acquisition", **wanted, **beam, **blurs, **times, defocus_A=defoci, scan_step_A=steps,
        det_step_mrad=det_step_mrad, aberrations=dict(optics.aberrations), tolerance=tolerance,
        dose_limit_e_per_A2=dose_limit_e_per_A2,
    )  # fmt: skip
    return plan


def _check_against(against: str) -> None:
    if against not in AGAINST:
        raise ValueError(f"against={against!r} must be one of {', '.join(map(repr, AGAINST))}")


def _question(power: xr.DataArray, *, resolution_A: float, threshold: str | float, against: str) -> Question:
    number = np.interp(1 / resolution_A, power["frequency"].values, power["n_independent"].values)
    return Question(power, 1 / float(resolution_A), float(frc_threshold(threshold, number)), against)


def _attrs(optics: ScanOptics, power: xr.DataArray, asked: dict[str, Any]) -> dict[str, Any]:
    per_mrad = 1e-3 / optics.wavelength
    attrs = {name: value for name, value in asked.items() if value is not None} | {"threshold": str(asked["threshold"])}
    attrs |= {"method": optics.method, "wavelength_A": optics.wavelength, "semiangle_mrad": optics.cutoff / per_mrad}
    attrs |= {"det_step_mrad": [edge / per_mrad for edge in optics.pixel], "specimen": specimen_words(power)}
    return attrs | {"ring_width": float(power.attrs["ring_width"]), "band_limit": 2 * optics.cutoff}
