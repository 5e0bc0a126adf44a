"""What a referee is told of how the methods were treated."""

from __future__ import annotations

import json

import xarray as xr

__all__ = ["fairness_notes"]

_FAIRNESS = (
    "Every method gets the same recorded electrons, the same true aberrations and rotation, and the same pixels for "
    "its image; nobody is told that the simulated scan wraps round.",
    "One ring width for all methods on a specimen, given above. Resolution is where the Fourier ring correlation with "
    "the true projected phase falls to 0.5; half maps are read at the half-bit threshold.",
    "The simulation is multislice; the truth is the projected phase, of which no method sees anything (but the one "
    "whose name says “at its very best”).",
    "The linear limit is what the dose allows any linear image of the bright field. A curve beyond it owes that to "
    "a prior, to the dark field, or to chance: for a lattice that may be honest, for amorphous matter it is not.",
    "The dashed limit is that of infinitely fine detector pixels; the dotted one takes off what these pixels lose as "
    "the shift of the views changes across each of them.",
    "py4DSTEM's ptychography keeps its object non-negative, as it does by default, and uses the dark field too: a "
    "prior and electrons that bright-field methods do not have. Its tuned settings are searched for each cube among "
    "those listed under Settings; where the choice lies at the end of what was tried, more might gain more.",
    "quantem wants a detector pixel on the optic axis and interpolates the patterns where there is none, as here "
    "(tests/benchmarks/compare_quantem.py sets it beside misr on a detector that has one).",
    "Positions are compared as they are; “aligned” is the same after taking off a shift of the image, for all methods "
    "alike, where that shift is beyond chance.",
    "SSIM and PSNR are taken after the least-squares gain and offset, for all methods alike: phases have no zero, and "
    "few iterations leave ptychography's too weak.",
    "Times are of one image of the whole cube in a process that has made such images before; searching settings is "
    "told apart. Other work on the machine, and the other workers of this run, are in them: only large ratios mean "
    "anything.",
    "Half maps say how well an image repeats, not how true it is: what a method puts into both halves alike (aliases, "
    "the scan's raster, the order of its batches) counts for it.",
)


_PUBLISHED = (
    "The published Attention U-Net is written from its description and trained on random specimens as misr's own "
    "network is{budget}. It is told no geometry, so energy, aberrations, scan step and detector are those of "
    "this benchmark, for which alone it was trained; detector pixels that a specimen's side makes a little larger or "
    "smaller are shared out over those trained for by area. Its image has three pixels per scan step, which cannot "
    "carry more than 0.75 1/Å (1.33 Å) at steps of 2 Å."
)


def fairness_notes(table: xr.Dataset) -> list[str]:
    """Sentences for the report: those that hold for every table, and those of methods that are in this one.

    Parameters
    ----------
    table : xarray.Dataset
        From `misr.benchmark.read_benchmark`.

    Returns
    -------
    list of str
        Plain text.

    Examples
    --------
    >>> from misr.benchmark import table_from_rows
    >>> row = {"specimen": "glass", "method": "tcbf", "dose_e_per_A2": 100, "seed": 0, "resolution_A": 3.0}
    >>> any("published" in note for note in fairness_notes(table_from_rows([row])))
    False
    """
    chosen = [str(one) for one in table["chosen"].values[table["method"].values == "attention_unet"] if one]
    if not chosen:
        return [*_FAIRNESS]
    told = json.loads(chosen[0])
    budget = f" ({told['specimens']} specimens, {told['core_hours']:.1f} core-hours)" if "core_hours" in told else ""
    return [*_FAIRNESS, _PUBLISHED.format(budget=budget)]
