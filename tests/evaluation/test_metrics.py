"""Metrics against their definitions in float64, and against torch-fidelity."""

import json

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from helpers.runs import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import seeded

from diffusion_distillation.evaluation.extractor import Activations
from diffusion_distillation.evaluation.frechet import Moments, Statistics, frechet_distance, statistics
from diffusion_distillation.evaluation.metrics import (
    METRICS,
    Criterion,
    FeatureSet,
    MetricValue,
    collect_features,
    compute_metrics,
    named_values,
    reference_fields,
    sample_fields,
    select_metrics,
)
from diffusion_distillation.evaluation.scores import (
    inception_scores,
    kernel_distances,
    manifold_metrics,
    sliced_wasserstein,
)

seeds = st.integers(0, 1000)


@given(seed=seeds, dim=st.integers(1, 12))
def test_frechet_distance_equals_the_formula_with_a_matrix_square_root(seed, dim):
    rng = np.random.default_rng(seed)
    (mean_a, mean_b), (a, b) = rng.normal(size=(2, dim)), rng.normal(size=(2, dim, 2 * dim))
    a, b = a @ a.T, b @ b.T
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    got = frechet_distance(Statistics(mean_a, a), Statistics(mean_b, b))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@given(seed=seeds, rank=st.integers(0, 6))
def test_frechet_distance_of_gaussians_with_the_same_axes_equals_the_closed_form(seed, rank):
    """Covariances may be singular."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    a, b = rng.uniform(0.1, 3, (2, 6)) * (np.arange(6) < rank)
    mean_a, mean_b = rng.normal(size=(2, 6))
    got = frechet_distance(*(Statistics(mean, axes * s**2 @ axes.T) for mean, s in ((mean_a, a), (mean_b, b))))
    np.testing.assert_allclose(got, np.sum((mean_a - mean_b) ** 2) + np.sum((a - b) ** 2), rtol=1e-6)


def test_frechet_distance_of_a_degenerate_set_to_itself_is_zero():
    features = np.zeros((50, 3))
    features[:, 0] = np.arange(50)
    a = statistics([features])
    np.testing.assert_allclose(frechet_distance(a, a), 0, atol=1e-9)
    shifted = statistics([features + np.array([0, 2.0, 0])])
    np.testing.assert_allclose(frechet_distance(a, shifted), 4)


def test_statistics_of_batches_equal_those_of_the_whole():
    features = np.random.default_rng(0).normal(1e4, 1, (103, 5))
    got = statistics(np.array_split(features, [10, 11, 60]))
    np.testing.assert_allclose(got.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.covariance, np.cov(features, rowvar=False), rtol=1e-9)
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        statistics([np.zeros((1, 3))])
    with pytest.raises(ValueError, match="got 0"):
        Moments().statistics()


def sets(seed, n, m, dim):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)), 0.3 + 1.2 * rng.normal(size=(m, dim))


@settings(max_examples=10)
@given(seed=seeds, n=st.integers(2, 30), m=st.integers(2, 30))
def test_kernel_distances_equal_the_definition(seed, n, m):
    """With subsets as large as both sets."""
    a, b = sets(seed, n, m, 5)
    size = min(n, m)
    a, b = a[:size], b[:size]
    kernel = lambda x, y: (sum(x * y) / 5 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(size) for j in range(size)]
    expected = sum((kernel(a[i], a[j]) + kernel(b[i], b[j])) / (size * (size - 1)) for i, j in pairs if i != j)
    expected -= 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / size**2
    np.testing.assert_allclose(kernel_distances(a, b, subsets=3), expected, rtol=1e-9, atol=1e-9)


def test_kernel_distances_of_subsets_average_to_that_of_the_whole():
    a, b = sets(0, 600, 500, 4)
    found = kernel_distances(a, b, subsets=200, size=50)
    [whole] = kernel_distances(a[:500], b, subsets=1)
    assert len(set(found)) == 200 and abs(found.mean() - whole) < 4 * found.std() / 200**0.5
    with pytest.raises(ValueError, match="at least 2 images on both sides; got 1 and 500"):
        kernel_distances(a[:1], b)


@given(seed=seeds, n=st.integers(4, 40), splits=st.integers(1, 4))
def test_inception_scores_equal_the_definition(seed, n, splits):
    logits = 3 * np.random.default_rng(seed).normal(size=(n, 7))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = p[np.random.RandomState(2020).permutation(n)]
    parts = [p[split * n // splits : (split + 1) * n // splits] for split in range(splits)]
    expected = [np.exp(np.mean([scipy.stats.entropy(row, part.mean(axis=0)) for row in part])) for part in parts]
    np.testing.assert_allclose(inception_scores(logits, splits), expected, rtol=1e-9)


def test_inception_scores_are_1_for_uncertain_logits_and_the_number_of_classes_for_certain_ones():
    np.testing.assert_allclose(inception_scores(1e4 * np.eye(8), 1), 8)
    np.testing.assert_allclose(inception_scores(np.zeros((8, 5)), 2), 1)
    with pytest.raises(ValueError, match="of 10 parts needs as many images; got 8"):
        inception_scores(np.zeros((8, 5)), 10)


@given(seed=seeds, n=st.integers(4, 30), m=st.integers(4, 30), k=st.integers(1, 3))
def test_manifold_metrics_equal_the_definition(seed, n, m, k):
    samples, reference = sets(seed, n, m, 2)
    apart = lambda x, y: np.linalg.norm(x[:, None] - y[None], axis=-1)  # noqa: E731
    of_samples, of_reference = (np.sort(apart(x, x), axis=1)[:, k] for x in (samples, reference))
    within = apart(samples, reference) <= of_reference
    expected = {
        "precision": within.any(axis=1).mean(),
        "recall": (apart(samples, reference) <= of_samples[:, None]).any(axis=0).mean(),
        "density": within.sum() / (k * n),
        "coverage": within.any(axis=0).mean(),
    }
    assert manifold_metrics(samples, reference, k) == pytest.approx(expected, rel=1e-9)


def test_manifold_metrics_refuse_too_few_images():
    with pytest.raises(ValueError, match="more than 3 images on both sides; got 9 and 3"):
        manifold_metrics(np.zeros((9, 2)), np.zeros((3, 2)), 3)


@given(seed=seeds, n=st.integers(1, 12), m=st.integers(1, 12))
def test_sliced_wasserstein_in_one_dimension_compares_sorted_sets(seed, n, m):
    """Both sets are repeated to the same length."""
    a, b = sets(seed, n, m, 1)
    longer = [np.sort(x.ravel()).repeat(n * m // len(x)) for x in (a, b)]
    expected = np.sqrt(np.mean((longer[0] - longer[1]) ** 2))
    np.testing.assert_allclose(sliced_wasserstein(a, b), expected, rtol=1e-9)


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection():
    a, _ = sets(0, 40, 1, 3)
    shift = np.array([1.0, 2.0, 2.0])
    np.testing.assert_allclose(sliced_wasserstein(a, a + shift, directions=20_000), 3 / 3**0.5, rtol=0.02)


@pytest.mark.parametrize("batches", [7, 64])
def test_metrics_do_not_depend_on_the_batches(batches):
    a, b = sets(3, 640, 500, 8)
    logits = np.random.default_rng(1).normal(size=(640, 5))
    fields = sample_fields(METRICS) | reference_fields(METRICS)
    reference = collect_features([Activations(b, logits)], fields)
    parts = zip(np.array_split(a, batches), np.array_split(logits, batches), strict=True)
    whole, streamed = (
        collect_features(given, fields) for given in ([Activations(a, logits)], (Activations(*part) for part in parts))
    )
    found = compute_metrics(list(METRICS), whole, reference)
    assert list(found) == list(METRICS)
    expected = numbers(found)
    assert numbers(compute_metrics(list(METRICS), streamed, reference)) == pytest.approx(expected, rel=1e-9)
    names = {"frechet": ["fid"], "kid": ["kid", "kid_std"], "is": ["is", "is_std"]}
    assert list(expected) == [name for metric in METRICS for name in names.get(metric, [metric])]


def numbers(found):
    """Values by the names that metrics have with Inception's features."""
    return named_values({Criterion(name, "inception"): value for name, value in found.items()})


def test_only_the_fields_that_are_needed_are_collected():
    observed = collect_features([Activations(np.ones((3, 2)), np.ones((3, 4)))] * 2, sample_fields(["frechet"]))
    assert observed.features is None and observed.logits is None and observed.statistics is not None
    assert collect_features([Activations(np.ones((3, 2)))], sample_fields(["recall"])).statistics is None
    nine = collect_features([Activations(np.eye(9))], sample_fields(["recall"]))
    assert list(compute_metrics(["recall"], nine, nine)) == ["recall"]


def test_unknown_metrics_and_too_few_samples_are_refused():
    with pytest.raises(ValueError, match=r"Unknown metric 'fib'.* Did you mean 'fid'"):
        select_metrics(["fib"], 10)
    with pytest.raises(ValueError, match="'is' needs at least 10 samples; got 9"):
        select_metrics(["fid", "is"], 9)


def test_only_the_frechet_distance_with_inceptions_features_is_an_fid():
    assert (
        select_metrics(["recall", "fid"], 10)
        == select_metrics(["frechet", "recall", "fid"], 10)
        == ("frechet", "recall")
    )
    criteria = [Criterion("frechet", of) for of in ("inception", "pixels", "mine:f")] + [Criterion("kid", "inception")]
    assert [criterion.name for criterion in criteria] == ["fid", "frechet_pixels", "frechet_mine:f", "kid"]
    titles = ["FID", "Fréchet distance (pixels)", "Fréchet distance (mine:f)", "KID"]
    assert [criterion.title for criterion in criteria] == titles


def test_names_of_features_and_of_deviations_do_not_collide():
    values = {
        Criterion("kid", of): MetricValue(value, value / 10) for of, value in (("mine:f", 1.0), ("mine:f_std", 2.0))
    }
    names = ["kid_mine:f", "kid_std_mine:f", "kid_mine:f_std", "kid_std_mine:f_std"]
    assert named_values(values) == dict(zip(names, (1.0, 0.1, 2.0, 0.2), strict=True))


def test_metrics_equal_torch_fidelitys():
    """For 2,000 images at its default settings: `golden/metrics.json`, made by tests/peers/fidelity.py."""
    expected = json.loads((ROOT / "tests" / "golden" / "metrics.json").read_text())["float64"]
    given = seeded.activations()
    fields = frozenset(["statistics", "features", "logits"])
    samples = collect_features([Activations(given["features_1"], given["logits_1"])], fields)
    reference = collect_features([Activations(given["features_2"], given["logits_1"])], fields)
    found = numbers(compute_metrics(list(METRICS), samples, reference))
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "is": "inception_score_mean",
        "is_std": "inception_score_std",
        "precision": "precision",
        "recall": "recall",
    }
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(expected[theirs], rel=1e-6), ours


def test_accuracy_is_the_share_of_samples_that_show_the_requested_class():
    logits, labels = np.eye(3)[[0, 1, 2, 1]], np.array([0, 1, 1, 1])
    assert sample_fields(["accuracy"]) == {"logits", "labels"}
    found = compute_metrics(["accuracy"], FeatureSet(logits=logits, labels=labels), FeatureSet())
    assert found == {"accuracy": MetricValue(0.75)}
