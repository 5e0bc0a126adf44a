"""What a benchmark is made of: specimens, doses, seeds, methods and optics, and the presets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

__all__ = [
    "LIMITS",
    "PRESETS",
    "BenchmarkSettings",
    "Cell",
    "Specimen",
    "attention_unet_file",
    "preset_settings",
    "structure_specimen",
]

_KINDS = ("amorphous", "semicrystalline", "crystalline", "structure")
_DOSES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 1e4)
LIMITS = ("limit_linear", "limit_pixels")  # computed for every specimen and dose


@dataclass(frozen=True)
class Specimen:
    """One specimen, from which each seed makes its own atoms (but for structure files, which are what they are)."""

    name: str
    kind: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of misr's specimens, or of `structure_atoms`
    ring_width: float | str | None = None  # 1/Å; None: one frequency pixel; "auto": from the truth's reflections

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind={self.kind!r} of specimen {self.name!r} must be one of {_KINDS}")
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"the specimen's name {self.name!r} becomes a file name: letters, digits, - and _ only")


@dataclass(frozen=True)
class BenchmarkSettings:
    """All that the numbers depend on.

    Attributes
    ----------
    preset : str
        Where it came from.
    specimens : tuple of Specimen
        Each seed draws them anew.
    doses : tuple of float
        Electrons per Å².
    seeds : tuple of int
        Each makes the specimen, the counts, the halves and the order of the batches.
    methods : tuple of str
        Names in `misr.benchmark.methods.METHODS`.
    optics : mapping
        Of `misr.simulate_cube`: energy, semi-angle, aberrations, step, detector.
    ptychography : mapping
        Arguments of `misr.reconstruct_ptychography` with its default settings.
    ptychography_search : mapping
        Values that are tried for its tuned lines, by setting; empty: all that misr tries by itself.
    aligned : float
        Farthest shift to the truth, Å, that the aligned resolution mends.
    attention_unet : mapping
        Weights of the published network, ``path`` and a digest of their ``content``, see `attention_unet_file`.
    """

    preset: str
    specimens: tuple[Specimen, ...]
    doses: tuple[float, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    optics: Mapping[str, Any]
    ptychography: Mapping[str, Any] = field(default_factory=dict)
    ptychography_search: Mapping[str, Any] = field(default_factory=dict)
    aligned: float = 1.0
    attention_unet: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("specimens", "doses", "seeds", "methods"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} is empty: a benchmark needs at least one")
            keys = [one.name for one in values] if name == "specimens" else list(values)
            if len(set(keys)) < len(keys):
                raise ValueError(f"{name} {keys} holds something twice")
        if not all(math.isfinite(dose) and dose > 0 for dose in self.doses):
            raise ValueError(f"doses {self.doses} must be positive numbers of electrons per Å²")

    def cells(self) -> list[Cell]:
        """Every specimen × dose × seed × method, cheap doses and one seed of everything first."""
        return [
            Cell(specimen=specimen, dose=dose, seed=seed, method=method, settings=self)
            for seed in self.seeds
            for specimen in self.specimens
            for dose in self.doses
            for method in (*LIMITS, *self.methods)
        ]

    def scenes(self) -> list[tuple[Specimen, int]]:
        """What is simulated: each specimen once for each seed."""
        return [(specimen, seed) for seed in self.seeds for specimen in self.specimens]

    def narrowed(
        self,
        *,
        specimens: Sequence[str] | None = None,
        doses: Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
        methods: Sequence[str] | None = None,
    ) -> BenchmarkSettings:
        """The same with other doses, seeds or methods, or only some of the specimens."""
        kept = self.specimens
        if specimens is not None:
            known = {one.name: one for one in self.specimens}
            unknown = [name for name in specimens if name not in known]
            if unknown:
                raise ValueError(f"unknown specimens {unknown}: preset {self.preset!r} has {sorted(known)}")
            kept = tuple(known[name] for name in specimens)
        return replace(
            self,
            specimens=kept,
            doses=self.doses if doses is None else tuple(map(float, doses)),
            seeds=self.seeds if seeds is None else tuple(map(int, seeds)),
            methods=self.methods if methods is None else tuple(methods),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchmarkSettings:
        """What `as_dict` made."""
        known = {name.name for name in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        given["specimens"] = tuple(Specimen(**one) for one in given["specimens"])
        for name in ("doses", "seeds", "methods"):
            given[name] = tuple(given[name])
        return cls(**given)


@dataclass(frozen=True)
class Cell:
    """One number of the table to be: a method on one draw of electrons of one specimen."""

    specimen: Specimen
    dose: float
    seed: int
    method: str
    settings: BenchmarkSettings

    @property
    def name(self) -> str:
        """Of its file: what it is, and a digest of all settings that its result depends on."""
        own = [asdict(self.specimen), dict(self.settings.optics), self.dose, self.seed, self.method]
        own.append(self.settings.aligned)
        if self.method == "ptychography":
            own.append(dict(self.settings.ptychography))
        elif self.method.startswith("ptychography"):
            own.append(dict(self.settings.ptychography_search))
        elif self.method == "attention_unet":
            own.append(self.settings.attention_unet.get("content"))
        return f"{self.specimen.name}_{self.dose:g}_s{self.seed}_{self.method}_{digest(own)}"


def digest(values: Any) -> str:
    """Eight letters that change with the values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def attention_unet_file(path: str | Path) -> dict[str, str]:
    """The published network's weights for `BenchmarkSettings`: other weights are computed anew.

    Parameters
    ----------
    path : path
        What ``misr train --preset attention_unet`` wrote.

    Returns
    -------
    dict
        ``path`` and ``content``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> attention_unet_file("no-such.safetensors")
    Traceback (most recent call last):
        ...
    FileNotFoundError: there is no file no-such.safetensors: misr train --preset attention_unet writes the weights
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}: misr train --preset attention_unet writes the weights")
    with file.open("rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    return {"path": str(file.resolve()), "content": content}


def structure_specimen(path: str | Path, *, field_A: float = 64.0, thickness_A: float = 30.0) -> Specimen:
    """A specimen from a structure file that ASE reads (cif, xyz, POSCAR …), repeated to about this size.

    Parameters
    ----------
    path : path
        The file; its content is part of the settings, so that a changed file is computed anew.
    field_A, thickness_A : float
        About this size, Å; a larger cell stays as it is.

    Returns
    -------
    Specimen
        See `misr.benchmark.scenes.structure_atoms` for what is done to it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> structure_specimen("no-such.cif")
    Traceback (most recent call last):
        ...
    FileNotFoundError: there is no structure file no-such.cif
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no structure file {file}")
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in file.stem) or "structure"
    content = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    options = {"path": str(file.resolve()), "content": content, "field_A": field_A, "thickness_A": thickness_A}
    return Specimen(name, "structure", f"{file.stem} (structure file)", options, "auto")


def _specimens(field_A: float) -> tuple[Specimen, ...]:
    return (
        Specimen("amorphous", "amorphous", "amorphous: protein-like packing",
                 {"field_A": field_A, "thickness_A": 30.0}),
        # 0.09 1/Å: wider than the zeolite's reciprocal lattice spacing, 1/11.87 Å
        Specimen("semicrystalline", "semicrystalline", "semi-crystalline: zeolite in glass",
                 {"field_A": field_A, "place": "centre"}, 0.09),
        Specimen("crystalline", "crystalline", "crystalline: zeolite with vacancies",
                 {"name": "zeolite", "field_A": field_A, "vacancies": 0.05, "square": True}, 0.09),
    )  # fmt: skip


_OPTICS: dict[str, Any] = {
    "energy_eV": 300e3,
    "semiangle_mrad": 10.0,
    # With 64 pixels of 0.6 mrad the shift between neighbours is 0.5 Å, below what is to be resolved, and the defocused
    # probe fits twice into the window of ptychography. At -1500 Å both lost by it (one specimen tried).
    "aberrations": {"C10": -800.0},
    "scan_step_A": 2.0,
    "det_pixels": 64,
}
_METHODS = (
    "raw_view",
    "tcbf",
    "fuse_linear",
    "fuse_linear_local",
    "parallax",
    "ptychography",
    "ptychography_tuned",
)
_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "specimens": _specimens(32.0)[:1],
        "doses": (100.0, 1000.0),
        "seeds": (0,),
        "methods": tuple(name for name in _METHODS if name != "ptychography_tuned"),
        "optics": _OPTICS,
        "ptychography": {"iterations": 2},
    },
    "small": {
        "specimens": _specimens(64.0),
        "doses": (10.0, 30.0, 100.0, 300.0, 1000.0, 1e4),
        "seeds": (0, 1),
        "methods": (*_METHODS, "fuse_cnn"),
        "optics": _OPTICS,
        "ptychography": {"iterations": 8},
        # a quarter of the whole search's time, or 20 minutes would not do
        "ptychography_search": {"batch_size": [64], "step_size": [0.03, 0.1, 0.3], "iterations": [2, 4, 8]},
    },
    "full": {
        "specimens": _specimens(128.0),
        "doses": _DOSES,
        "seeds": (0, 1, 2, 3, 4),
        "methods": (*_METHODS, "ptychography_oracle", "fuse_cnn"),
        "optics": _OPTICS,
    },
}
PRESETS = tuple(_PRESETS)


def preset_settings(preset: str = "small") -> BenchmarkSettings:
    """The settings of a preset.

    Parameters
    ----------
    preset : {"tiny", "small", "full"}
        "tiny" shows that it runs, on one specimen; "small" is what a laptop does in 20 minutes; "full" has all
        doses, five seeds and fields of 128 Å, for a workstation overnight.

    Returns
    -------
    BenchmarkSettings
        300 kV, 10 mrad, C10 -800 Å, steps of 2 Å.

    Raises
    ------
    ValueError
        For an unknown preset.

    Examples
    --------
    >>> small = preset_settings("small")
    >>> len(small.specimens), small.doses
    (3, (10.0, 30.0, 100.0, 300.0, 1000.0, 10000.0))
    """
    if preset not in _PRESETS:
        raise ValueError(f"preset={preset!r} must be one of {PRESETS}")
    return BenchmarkSettings(preset=preset, **_PRESETS[preset])
