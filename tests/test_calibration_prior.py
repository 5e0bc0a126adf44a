"""The likelihood of matched-filter energies: a proper Bayes factor, against brute force on small cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate

from misr.calibration.prior import PowerPrior

AREA = 1e4  # Å²


def draw(variance, power, *, rng):
    """Filter values at frequencies whose coefficients are complex Gaussians of these powers."""
    generator = np.random.default_rng(rng)
    normal = generator.normal(size=(2, *np.shape(variance))) / math.sqrt(2)
    return (normal[0] + 1j * normal[1]) * np.sqrt(variance * (1 + power * variance))


def density(v, spread):
    """Of a complex Gaussian of that variance."""
    return np.exp(-(abs(v) ** 2) / spread) / (np.pi * spread)


def brute_force(prior, v, variance):
    """Evidence and posterior power by sums over everything, in plain densities."""
    likelihoods = []
    for m in range(prior.mixtures.shape[1]):
        product = 1.0
        for i in range(len(v)):
            product *= sum(
                share * density(v[i], variance[i] * (1 + power * variance[i]))
                for share, power in zip(prior.mixtures[:, m], prior.power[i], strict=True)
            )
        likelihoods.append(product)
    noise = np.prod([density(v[i], variance[i]) for i in range(len(v))])
    return np.mean(likelihoods) / noise, np.array(likelihoods) / np.sum(likelihoods)


def test_mixtures_are_probabilities():
    prior = PowerPrior(np.array([0.1, 0.4]), area_A2=AREA)
    assert (prior.mixtures >= 0).all()
    np.testing.assert_allclose(prior.mixtures.sum(axis=0), 1)
    assert (np.diff(prior.power, axis=1) > 0).all()  # levels rise
    assert (prior.power[0] > prior.power[1]).all()  # and light atoms scatter less far out
    np.testing.assert_allclose(PowerPrior(np.array([0.1]), area_A2=2 * AREA).power * 2, prior.power[:1])


@pytest.mark.parametrize("seed", range(5))
def test_evidence_is_the_sum_over_everything(seed):
    variance = np.array([2e5, 1e6, 3e7])
    prior = PowerPrior(np.array([0.05, 0.2, 0.45]), area_A2=AREA)
    v = draw(variance, 3 / variance * (seed % 3), rng=seed)
    evidence = prior.evidence(v, variance)
    ratio, chance = brute_force(prior, v, variance)
    assert evidence.log == pytest.approx(math.log(ratio), abs=1e-6)
    np.testing.assert_allclose(evidence.share.sum(axis=1), 1, atol=1e-5)
    # Bayes: the share of a level at a frequency, averaged over the mixtures as probable as they now are
    for i in range(3):
        likely = density(v[i], variance[i] * (1 + prior.power[i] * variance[i]))[:, None] * prior.mixtures
        expected = (likely / likely.sum(axis=0)) @ chance
        np.testing.assert_allclose(evidence.share[i], expected, atol=1e-4)


def test_noise_gives_no_evidence():
    # a Bayes factor of noise is 1 on average, so it exceeds e³ at most once in twenty
    variance = np.geomspace(1e5, 1e8, 400)
    prior = PowerPrior(np.linspace(0.02, 0.5, 400), area_A2=AREA)
    logs = np.array([prior.evidence(draw(variance, 0.0, rng=seed), variance).log for seed in range(200)])
    assert np.median(logs) < 0
    assert (logs > 3).mean() <= 0.06
    assert np.exp(logs).mean() < 1.7


def test_bayes_factor_is_one_on_average():
    variance = np.array([1e6])
    prior = PowerPrior(np.array([0.2]), area_A2=AREA)
    # |v|² over its variance is exponential; the rarest and largest energies bring much of the mean
    energy = np.geomspace(1e-6, 1e9, 4000)
    factor = np.array([math.exp(prior.evidence(np.sqrt(e * variance), variance).log - e) for e in energy])
    assert integrate.trapezoid(factor * energy, np.log(energy)) == pytest.approx(1, abs=0.01)


def test_evidence_grows_with_the_signal_and_the_number():
    q, variance = np.linspace(0.02, 0.5, 300), np.full(300, 1e6)
    form = np.exp(-((q / 0.6) ** 2))
    prior = PowerPrior(q, area_A2=AREA)
    normal = draw(np.ones(300), 0.0, rng=0)
    logs = [
        prior.evidence(normal * np.sqrt(variance * (1 + snr * form)), variance).log for snr in (0, 0.3, 1, 3, 10, 100)
    ]
    assert logs[0] < 0
    assert (np.diff(logs[1:]) > 0).all()
    half = PowerPrior(q[::2], area_A2=AREA)
    strong = normal * np.sqrt(variance * (1 + 3 * form))
    own, part = prior.evidence(strong, variance).log, half.evidence(strong[::2], variance[::2]).log
    assert part == pytest.approx(own / 2, rel=0.25)


def test_few_reflections_and_even_power_are_both_understood():
    q, variance = np.linspace(0.05, 0.5, 2000), np.full(2000, 1e6)
    prior = PowerPrior(q, area_A2=AREA)
    spots = np.zeros(2000)
    spots[::250] = 60.0  # times the noise
    noise = draw(np.ones(2000), 0.0, rng=1)
    sparse = np.where(spots > 0, noise / abs(noise), noise) * np.sqrt(variance * (1 + spots))
    diffuse = noise * np.sqrt(variance * (1 + spots.mean()))
    found = {name: prior.evidence(v, variance) for name, v in (("sparse", sparse), ("diffuse", diffuse))}

    def one_level(v):
        """Largest log-likelihood with the same density of power at all frequencies."""
        snr = np.geomspace(1e-3, 1e2, 200)[:, None] * prior.form
        energy = abs(v) ** 2 / variance
        return (energy * snr / (1 + snr) - np.log1p(snr)).sum(axis=1).max()

    assert found["sparse"].log > 3 * one_level(sparse)
    assert found["sparse"].log > 40
    assert one_level(diffuse) - 6 < found["diffuse"].log < one_level(diffuse) + 3

    def expected_power(name):
        return (found[name].share * found[name].power).sum(axis=1)

    # between its reflections a crystal is known to be dark, where an amorphous film is not
    lit = spots > 0
    assert expected_power("sparse")[lit].min() > 30 * np.median(expected_power("sparse")[~lit])
    assert np.median(expected_power("sparse")[~lit]) < 0.5 * np.median(expected_power("diffuse"))


def test_repeated_values_with_half_the_weight_tell_the_same():
    q, variance = np.linspace(0.05, 0.5, 100), np.geomspace(1e6, 1e7, 100)
    v = draw(variance, 2 / variance, rng=3)
    once = PowerPrior(q, area_A2=AREA).evidence(v, variance)
    twice = PowerPrior(np.tile(q, 2), area_A2=AREA, independent=0.5).evidence(np.tile(v, 2), np.tile(variance, 2))
    assert twice.log == pytest.approx(once.log, rel=1e-9)
    np.testing.assert_allclose(twice.share[:100], once.share, atol=1e-6)
    assert PowerPrior(q, area_A2=AREA, independent=0.5).evidence(v, variance).log < 0.7 * once.log


def test_absurd_energies_stay_finite():
    q, variance = np.array([0.1, 0.2, 0.3]), np.array([1e6, 1e6, 0.0])
    evidence = PowerPrior(q, area_A2=AREA).evidence(np.array([1e9, 0.0, 0.0]), variance)
    assert math.isfinite(evidence.log)
    assert np.isfinite(evidence.share).all()
    assert (evidence.share >= 0).all()
