import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_distillation.data import batch_indices, load_source, read_batch


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 70))
def test_epochs_follow_each_other(seed, num_examples, batch_size):
    """However the stream is cut into batches, each epoch's stretch of it holds every example once."""
    steps = -(-3 * num_examples // batch_size)
    stream = np.concatenate([batch_indices(seed, step, batch_size, num_examples) for step in range(steps)])
    whole = batch_indices(seed, 0, 3 * num_examples, num_examples)
    np.testing.assert_array_equal(stream[: 3 * num_examples], whole)
    for epoch in whole.reshape(3, num_examples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))


def test_order_depends_on_seed_and_epoch():
    first, second = batch_indices(0, 0, 2000, 1000).reshape(2, 1000)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, batch_indices(1, 0, 1000, 1000))


def test_digits():
    source = load_source("digits", randflip=False)
    assert (len(source), source.image_shape, source.num_classes) == (1797, (8, 8, 1), 1)
    batch = read_batch(source, seed=0, step=3, batch_size=64)
    assert batch["image"].shape == (64, 8, 8, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (64,) and batch["label"].dtype == np.int32
    everything = source[np.arange(len(source))]
    assert everything["image"].min() == 0 and everything["image"].max() == 255
    assert sorted(set(everything["label"].tolist())) == list(range(10))
    assert load_source("digits", class_conditional=True).num_classes == 10


def test_errors():
    with pytest.raises(ValueError, match=r"config.dataset.name='digit'; choose one of \['digits'\]"):
        load_source("digit")
    with pytest.raises(ValueError, match="'size'"):
        load_source("digits", size=8)
