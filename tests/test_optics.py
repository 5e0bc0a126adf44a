"""Optics against abTEM, finite differences, brute-force averages and a simulated weak object."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from phase_object import bandlimited_phase, phase_object_cube

from misr.aberrations import aberrations_of, polar_aberrations, with_aberrations
from misr.cube import cube_history
from misr.optics import (
    aberration_gradient,
    aberration_phase,
    aperture_fraction,
    axial_overlap,
    electron_wavelength,
    interaction_parameter,
    overlap_function,
    pixel_width,
    rotate,
)

WAVELENGTH = electron_wavelength(300e3)
CUTOFF = 10e-3 / WAVELENGTH
TINY = ((1e-6, 0.0), (0.0, 1e-6))
ORDER_3 = {
    "C10": -800.0, "C12": 150.0, "phi12": 0.4, "C21": 3e3, "phi21": -1.1, "C23": 2e3, "phi23": 0.7,
    "C30": 4e5, "C32": 1e5, "phi32": 0.2, "C34": 2e5, "phi34": -0.5,
}  # fmt: skip
QUADRATIC = {"C10": -1500.0, "C12": 200.0, "phi12": 0.6}

magnitudes = st.floats(-1e3, 1e3)
angles = st.floats(-math.pi, math.pi)


def polar(draw_magnitudes, draw_angles):
    """Coefficients of every order up to 3, each of comparable effect at 10 mrad."""
    orders = [(1, 0), (1, 2), (2, 1), (2, 3), (3, 0), (3, 2), (3, 4)]
    result = {}
    for (n, m), magnitude, angle in zip(orders, draw_magnitudes, draw_angles, strict=True):
        result[f"C{n}{m}"] = magnitude * 50.0 ** (n - 1)
        if m:
            result[f"phi{n}{m}"] = angle
    return result


coefficients = st.builds(polar, st.lists(magnitudes, min_size=7, max_size=7), st.lists(angles, min_size=7, max_size=7))
inside_disk = st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))


@pytest.mark.parametrize("energy", [20e3, 60e3, 80e3, 200e3, 300e3, 1e6])
def test_wavelength_and_interaction_agree_with_abtem(energy):
    from abtem.core.energy import energy2sigma, energy2wavelength

    assert electron_wavelength(energy) == pytest.approx(energy2wavelength(energy), rel=1e-7)
    assert interaction_parameter(energy) == pytest.approx(energy2sigma(energy), rel=1e-7)


@pytest.mark.parametrize("energy", [0.0, -1.0, float("nan")])
def test_wavelength_of_no_beam(energy):
    with pytest.raises(ValueError, match="must be positive"):
        electron_wavelength(energy)


@pytest.mark.parametrize("name", ["all", "C10", "C12", "C21", "C23", "C30", "C32", "C34", "C45", "C54"])
def test_aberrations_agree_with_abtem(name):
    import abtem
    from abtem.transfer import Aberrations

    given_by_name = ORDER_3 | {"C45": 5e7, "phi45": 0.3, "C54": 3e9, "phi54": 1.2}
    wanted = {c: v for c, v in given_by_name.items() if name == "all" or c[-2:] == name[-2:]}
    angle_y, angle_x = np.random.default_rng(0).uniform(-0.01, 0.01, (2, 500))
    with abtem.config.set({"precision": "float64"}):
        theirs = Aberrations(aberration_coefficients=wanted, energy=300e3)._evaluate_from_angular_grid(
            np.hypot(angle_y, angle_x), np.arctan2(angle_y, angle_x)
        )
    chi = aberration_phase(angle_y / WAVELENGTH, angle_x / WAVELENGTH, aberrations=wanted, wavelength=WAVELENGTH)
    assert np.ptp(chi) > 0.2  # the comparison is not of zeros
    np.testing.assert_allclose(np.exp(-1j * chi), theirs, atol=2e-5)


@given(coefficients, inside_disk)
def test_gradient_is_the_derivative(aberrations, k):
    optics = {"aberrations": aberrations, "wavelength": WAVELENGTH}
    k_y, k_x = np.array(k[0]), np.array(k[1])
    step = 1e-5
    numeric = (
        (aberration_phase(k_y + step, k_x, **optics) - aberration_phase(k_y - step, k_x, **optics)) / (2 * step),
        (aberration_phase(k_y, k_x + step, **optics) - aberration_phase(k_y, k_x - step, **optics)) / (2 * step),
    )
    np.testing.assert_allclose(aberration_gradient(k_y, k_x, **optics), numeric, rtol=1e-5, atol=1e-4)


def test_gradient_is_finite_on_the_axis():
    gradient = aberration_gradient(np.zeros(1), np.zeros(1), aberrations=ORDER_3, wavelength=WAVELENGTH)
    np.testing.assert_array_equal(gradient, np.zeros((2, 1)))


def test_polar_aberrations_takes_what_it_should():
    assert polar_aberrations(None) == {}
    assert polar_aberrations({"defocus": 100, "rotation_deg": 5, "C10_stderr": 3}) == {"C10": -100.0}
    assert polar_aberrations({"C10": -100.0, "defocus": 100}) == {"C10": -100.0}
    assert polar_aberrations({}) == {"C10": 0.0}  # in focus, which is not the same as not known


@pytest.mark.parametrize("given_", [[], "C10", -500.0])
def test_polar_aberrations_wants_a_mapping(given_):
    with pytest.raises(TypeError, match=r"give a mapping such as \{'C10'"):
        polar_aberrations(given_)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"C11": 1.0}, "unknown aberration 'C11'"),
        ({"Cs": 1.0}, "expected polar names"),
        ({"phi13": 1.0}, "unknown aberration"),
        ({"C10": float("nan")}, "not finite"),
        ({"C10": 100.0, "defocus": 100.0}, "disagree"),
        ({"rotation_deg": 5.0}, "names no aberration"),
    ],
)
def test_polar_aberrations_refuses(given_, message):
    with pytest.raises(ValueError, match=message):
        polar_aberrations(given_)


def test_aberrations_in_focus_are_kept_and_none_is_refused():
    array = xr.DataArray(0, attrs={"C10_A": -500.0, "C12_A": 20.0})
    focused = with_aberrations(array, {}, rotation_deg=3)
    assert aberrations_of(focused) == {"C10": 0.0}
    assert cube_history(focused) == [{"operation": "with_aberrations", "C10": 0.0, "rotation_deg": 3}]
    with pytest.raises(TypeError, match=r"aberrations is None.*\{\} for in focus"):
        with_aberrations(array, None)


def gamma(k, q, *, aberrations=QUADRATIC, pixel_edges=TINY):
    arrays = [np.asarray(v, dtype=float) for v in (*k, *q)]
    re, im = overlap_function(
        *arrays, aberrations=aberrations, wavelength=WAVELENGTH, cutoff=CUTOFF, pixel_edges=pixel_edges
    )
    return re + 1j * im


def probe(k_y, k_x, aberrations):
    chi = aberration_phase(k_y, k_x, aberrations=aberrations, wavelength=WAVELENGTH)
    return (np.hypot(k_y, k_x) < CUTOFF) * np.exp(-1j * chi)


@given(coefficients, inside_disk, st.tuples(st.floats(-1.2, 1.2), st.floats(-1.2, 1.2)))
def test_overlap_of_a_point_is_its_definition(aberrations, k, q):
    edge = min(abs(np.hypot(k[0] + s * q[0], k[1] + s * q[1]) - CUTOFF) for s in (-1, 0, 1))
    k_y, k_x = np.array(k)
    expected = 1j * (
        probe(k_y, k_x, aberrations).conj() * probe(k_y - q[0], k_x - q[1], aberrations)
        - probe(k_y, k_x, aberrations) * probe(k_y + q[0], k_x + q[1], aberrations).conj()
    )
    if edge > 1e-5:
        assert abs(gamma(k, q, aberrations=aberrations) - expected) < 1e-6


@given(coefficients, inside_disk, st.tuples(st.floats(-1.2, 1.2), st.floats(-1.2, 1.2)))
def test_overlap_of_a_real_phase_is_hermitian(aberrations, k, q):
    edges = ((0.03, 0.01), (-0.01, 0.03))
    here = gamma(k, q, aberrations=aberrations, pixel_edges=edges)
    there = gamma(k, (-q[0], -q[1]), aberrations=aberrations, pixel_edges=edges)
    assert abs(there - here.conjugate()) < 1e-9


@given(coefficients, inside_disk)
def test_constant_phase_is_invisible(aberrations, k):
    assert gamma(k, (0.0, 0.0), aberrations=aberrations, pixel_edges=((0.03, 0.0), (0.0, 0.03))) == 0


@given(inside_disk, st.floats(0, 2 * math.pi), st.floats(1.0, 3.0))
def test_nothing_passes_beyond_the_band_limit(k, angle, factor):
    q = 2 * CUTOFF * factor * 1.0001
    assert gamma(k, (q * math.sin(angle), q * math.cos(angle))) == 0


def test_view_without_overlap_sees_nothing():
    # bright-field pixels see nothing where neither k - q nor k + q lies in the aperture
    assert gamma((0.0, 0.0), (0.0, 1.01 * CUTOFF)) == 0
    assert abs(gamma((0.0, 0.3), (0.0, 0.6))) > 0.5


@pytest.mark.parametrize(("aberrations", "tolerance"), [(QUADRATIC, 1e-9), (ORDER_3, 2e-3)])
def test_overlap_is_the_mean_over_the_pixel(aberrations, tolerance):
    rng = np.random.default_rng(3)
    edges = np.array([(0.035, 0.012), (-0.012, 0.035)])
    node, weight = np.polynomial.legendre.leggauss(20)
    offset, area = node / 2, np.outer(weight, weight) / 4
    sub = offset[:, None, None] * edges[0] + offset[None, :, None] * edges[1]
    checked = 0
    for _ in range(200):
        k, q = rng.uniform(-0.4, 0.4, 2), rng.uniform(-0.6, 0.6, 2)
        distances = [np.hypot(*(k + sign * q)) for sign in (-1, 0, 1)]
        if any(abs(distance - CUTOFF) < 0.04 for distance in distances):
            continue  # the aperture's edge crosses the pixel: only the first order holds there
        checked += 1
        points = [k[axis] + sub[..., axis] for axis in range(2)]
        here = probe(*points, aberrations)
        minus, plus = (probe(points[0] + s * q[0], points[1] + s * q[1], aberrations) for s in (-1, 1))
        brute = (area * 1j * (here.conj() * minus - here * plus.conj())).sum()
        found = gamma(k, q, aberrations=aberrations, pixel_edges=tuple(map(tuple, edges)))
        assert abs(found - brute) < tolerance
    assert checked > 50


def test_quadratic_branch_equals_the_general_one():
    rng = np.random.default_rng(0)
    k, q = rng.uniform(-0.5, 0.5, (2, 400)), rng.uniform(-0.9, 0.9, (2, 400))
    edges = ((0.03, 0.01), (-0.01, 0.03))
    quick = gamma(k, q, pixel_edges=edges)
    # a third-order term of no size forces the general branch
    general = gamma(k, q, aberrations=QUADRATIC | {"C30": 1e-9}, pixel_edges=edges)
    np.testing.assert_allclose(quick, general, atol=1e-10)
    assert np.abs(quick).max() > 0.5


def test_overlap_in_torch_is_the_same():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-0.5, 0.5, 50) for _ in range(4)]
    options = {"aberrations": ORDER_3, "wavelength": WAVELENGTH, "cutoff": CUTOFF, "pixel_edges": TINY}
    expected = overlap_function(*arrays, **options)
    found = overlap_function(*(torch.as_tensor(a) for a in arrays), **options)
    np.testing.assert_allclose(found, np.array(expected), atol=1e-12)


@pytest.mark.parametrize("aberrations", [QUADRATIC, {"C10": 700.0, "C21": 4e4, "phi21": 0.3, "C30": 2e6}])
def test_overlap_predicts_a_simulated_weak_object(aberrations):
    """G(k, q) = Γ(k, q) φ(q), for every detector pixel and frequency of a simulation that knows nothing of Γ."""
    phase = bandlimited_phase((32, 32), 0.5, rng=0, strength=1e-4, cutoff=0.98)
    cube, _ = phase_object_cube(phase, 0.5, every=(1, 1), aberrations=aberrations, det_bin=1)
    det_y, det_x = np.meshgrid(cube.det_y, cube.det_x, indexing="ij")
    bright = np.hypot(det_y, det_x) < 9.5
    views = cube.values.astype(float)[:, :, bright]
    contrast = np.fft.fft2(views / views.mean(axis=(0, 1)) - 1, axes=(0, 1))
    q = np.fft.fftfreq(32, 0.5)
    q_y, q_x = np.meshgrid(q, q, indexing="ij")
    k = det_y[bright] * 1e-3 / WAVELENGTH, det_x[bright] * 1e-3 / WAVELENGTH
    model = gamma(k, (q_y[..., None], q_x[..., None]), aberrations=aberrations)
    predicted = model * np.fft.fft2(phase)[..., None]
    # the phase's second order (1e-4) and float32 counts (1e-7 of 1, against 1e-4 of contrast) are left
    assert np.linalg.norm(contrast - predicted) < 5e-3 * np.linalg.norm(predicted)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("turn", [0.0, 25.0])
def test_aperture_fraction_is_that_of_the_pixel(aspect, turn):
    edges = (rotate(0.03, 0.0, turn), rotate(0.0, 0.03 * aspect, turn))
    index = np.arange(-40, 41)
    k = [index[:, None] * edges[0][axis] + (index + 0.3) * edges[1][axis] for axis in range(2)]
    fraction = aperture_fraction(*k, cutoff=CUTOFF, width=pixel_width(*k, pixel_edges=edges))
    part = (np.arange(24) + 0.5) / 24 - 0.5
    within = [part[:, None] * edges[0][axis] + part * edges[1][axis] for axis in range(2)]
    brute = (np.hypot(*(c[..., None, None] + w for c, w in zip(k, within, strict=True))) < CUTOFF).mean(axis=(2, 3))
    edge = (brute > 0) & (brute < 1)
    assert edge.sum() > 50
    # a pixel's ramp has rounded ends: taking the first edge for the width errs by 0.055 at 1:1.5
    assert np.sqrt(np.mean((fraction - brute)[edge] ** 2)) < 0.025
    assert fraction.sum() == pytest.approx(brute.sum(), rel=5e-3)


def test_pixel_width_is_one_number_for_squares_and_finite_on_the_axis():
    k = np.array([0.0, 0.3]), np.array([0.0, 0.4])
    square = pixel_width(*k, pixel_edges=(rotate(0.03, 0.0, 20), rotate(0.0, 0.03, 20)))
    assert isinstance(square, float)
    assert square == pytest.approx(0.03)
    oblong = pixel_width(*k, pixel_edges=((0.03, 0.0), (0.0, 0.06)))
    np.testing.assert_allclose(oblong, [math.sqrt((0.03**2 + 0.06**2) / 2), math.hypot(0.6 * 0.03, 0.8 * 0.06)])


def test_overlap_does_not_care_which_edge_comes_first():
    rng = np.random.default_rng(0)
    k, q = rng.uniform(-0.5, 0.5, (2, 400)), rng.uniform(-0.9, 0.9, (2, 400))
    first, second = (0.03, 0.01), (-0.02, 0.06)
    np.testing.assert_allclose(
        gamma(k, q, pixel_edges=(first, second)), gamma(k, q, pixel_edges=(second, first)), atol=1e-12
    )


def test_axial_overlap_is_the_autocorrelation_of_the_aperture():
    step = 0.004
    k = np.arange(-0.5, 0.5, step) + step / 2
    inside = np.hypot(k[:, None], k[None, :]) < 0.5
    for q in (0.1, 0.4, 0.8):
        shift = round(q / step)
        shared = (inside[:, shift:] & inside[:, :-shift]).sum() / inside.sum()
        assert axial_overlap(np.array(q), cutoff=0.5) == pytest.approx(shared, abs=3e-3)
    assert axial_overlap(np.array([1.0, 2.0]), cutoff=0.5).tolist() == [0.0, 0.0]


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(-360, 360))
def test_rotation_is_undone_by_its_inverse(y, x, angle):
    turned = rotate(y, x, angle)
    assert math.hypot(*turned) == pytest.approx(math.hypot(y, x), abs=1e-9)
    assert rotate(*turned, -angle) == pytest.approx((y, x), abs=1e-9)


def test_rotation_composes_and_turns_y_into_x():
    assert rotate(1.0, 0.0, 90) == pytest.approx((0.0, 1.0), abs=1e-12)
    assert rotate(*rotate(0.3, -0.2, 20), 35) == pytest.approx(rotate(0.3, -0.2, 55))
