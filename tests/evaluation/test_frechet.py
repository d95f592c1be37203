import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from diffusion_distillation.data import load_source
from diffusion_distillation.evaluation.features import pixels
from diffusion_distillation.evaluation.frechet import Statistics, frechet_distance, statistics
from diffusion_distillation.evaluation.measure import data_indices, data_statistics, halves_distance


@given(seed=st.integers(0, 1000), dim=st.integers(1, 12))
def test_against_the_matrix_square_root(seed, dim):
    rng = np.random.default_rng(seed)
    (mean_a, mean_b), (a, b) = rng.normal(size=(2, dim)), rng.normal(size=(2, dim, 2 * dim))
    a, b = a @ a.T, b @ b.T
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    got = frechet_distance(Statistics(mean_a, a), Statistics(mean_b, b))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_of_a_set_with_itself_is_zero_even_where_it_is_flat():
    features = np.zeros((50, 3))
    features[:, 0] = np.arange(50)
    a = statistics([features])
    np.testing.assert_allclose(frechet_distance(a, a), 0, atol=1e-9)
    shifted = statistics([features + np.array([0, 2.0, 0])])
    np.testing.assert_allclose(frechet_distance(a, shifted), 4)


def test_statistics_in_batches():
    features = np.random.default_rng(0).normal(1e4, 1, (103, 5))
    got = statistics(np.array_split(features, [10, 11, 60]))
    np.testing.assert_allclose(got.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.covariance, np.cov(features, rowvar=False), rtol=1e-9)
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        statistics([np.zeros((1, 3))])


def test_digits():
    source = load_source("digits")
    everything = pixels(source[np.arange(len(source))]["image"])
    assert everything.min() == -1 and everything.max() == 1
    np.testing.assert_allclose(
        data_statistics(source, pixels, data_indices(source)).mean, everything.mean(axis=0), atol=1e-12
    )
    assert 0.2 < halves_distance(source, pixels, data_indices(source)) < 0.4
