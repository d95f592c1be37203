import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_distillation.data import load_source, read_batches, stream_indices


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 70))
def test_epochs_follow_each_other(seed, num_examples, batch_size):
    """However the stream is cut into batches, each epoch's stretch of it holds every example once."""
    positions = np.arange(3 * num_examples)
    batches = np.split(positions, range(batch_size, len(positions), batch_size))
    whole = stream_indices(seed, positions, num_examples)
    in_batches = np.concatenate([stream_indices(seed, batch, num_examples) for batch in batches])
    np.testing.assert_array_equal(in_batches, whole)
    for epoch in whole.reshape(3, num_examples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))


def test_order_depends_on_seed_and_epoch():
    first, second = stream_indices(0, np.arange(2000), 1000).reshape(2, 1000)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, stream_indices(1, np.arange(1000), 1000))


def test_digits():
    source = load_source("digits", randflip=False)
    assert (len(source), source.image_shape, source.num_classes) == (1797, (8, 8, 1), 1)
    batch = next(read_batches(source, 0, range(3, 4), 64))
    assert batch["image"].shape == (64, 8, 8, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (64,) and batch["label"].dtype == np.int32
    everything = source[np.arange(len(source))]
    assert everything["image"].min() == 0 and everything["image"].max() == 255
    assert sorted(set(everything["label"].tolist())) == list(range(10))
    assert load_source("digits", class_conditional=True).num_classes == 10


def test_errors():
    with pytest.raises(ValueError, match=r"config.dataset.name='digit'; choose one of \['CIFAR10', .*'digits'\]"):
        load_source("digit")
    with pytest.raises(ValueError, match="'size'"):
        load_source("digits", size=8)
