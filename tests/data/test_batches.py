import contextlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_distillation.data import load_source, read_batches, read_examples, stream_indices
from diffusion_distillation.data.batches import CHUNK_SIZE, NUM_THREADS


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 70))
def test_every_epoch_of_the_stream_has_each_example_once(seed, num_examples, batch_size):
    """However the stream is divided into batches."""
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


def test_digits_are_uint8_images_with_labels_if_asked_for():
    source = load_source("digits", randflip=False)
    assert (len(source), source.image_shape, source.num_classes) == (1797, (8, 8, 1), 1)
    batch = next(read_batches(source, 0, range(3, 4), 64))
    assert batch["image"].shape == (64, 8, 8, 1) and batch["image"].dtype == np.uint8
    assert set(batch) == {"image"}
    batch = next(read_batches(load_source("digits", class_conditional=True), 0, range(3, 4), 64))
    assert batch["label"].shape == (64,) and batch["label"].dtype == np.int32
    everything = source[np.arange(len(source))]
    assert everything["image"].min() == 0 and everything["image"].max() == 255
    assert sorted(set(everything["label"].tolist())) == list(range(10))
    assert load_source("digits", class_conditional=True).num_classes == 10


def test_unknown_datasets_and_arguments_are_refused():
    with pytest.raises(ValueError, match=r"Unknown config.dataset.name='digit'. Did you mean 'digits'\?"):
        load_source("digit")
    with pytest.raises(ValueError, match=r"no config.dataset.args.size. Known: class_conditional\."):
        load_source("digits", size=8)


class Counting:
    """A source whose images show their index, and that records how many are read at a time."""

    image_shape, num_classes = (1, 1, 2), 1000

    def __init__(self, length):
        self.length, self.asked = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, indices):
        self.asked.append(len(indices))
        image = np.stack([indices // 256, indices % 256], axis=-1).astype(np.uint8)
        return {"image": image[:, None, None], "label": indices.astype(np.int32)}


@given(st.sampled_from([1, 2, 4]), st.sampled_from([4, 64, 68, 256, 260]), st.integers(1, 1000), st.integers(0, 10**6))
def test_hosts_share_each_batch(hosts, batch_size, length, start):
    """The rows of all hosts, concatenated, are the batch. Each host reads only its own rows."""
    steps = range(start, start + 3)
    whole = list(read_batches(Counting(length), 7, steps, batch_size))
    parts = []
    for index in range(hosts):
        source = Counting(length)
        with contextlib.closing(read_batches(source, 7, steps, batch_size, process=(index, hosts))) as batches:
            parts.append(list(batches))
        assert sum(source.asked) == 3 * batch_size // hosts
        assert max(source.asked) <= CHUNK_SIZE
    for step, batch in zip(steps, whole, strict=True):
        expected = stream_indices(7, np.arange(step * batch_size, (step + 1) * batch_size), length)
        np.testing.assert_array_equal(batch["label"], expected)
        together = np.concatenate([part[step - start]["label"] for part in parts])
        np.testing.assert_array_equal(together, expected)
        np.testing.assert_array_equal(
            batch["image"][:, 0, 0, 0].astype(int) * 256 + batch["image"][:, 0, 0, 1], expected
        )


def test_a_fresh_process_reads_the_same_batch():
    code = (
        "from diffusion_distillation.data import load_source, read_batches\n"
        "batch = next(read_batches(load_source('digits', class_conditional=True), 5, range(1000, 1001), 32))\n"
        "print(hash(batch['image'].tobytes()), *batch['label'])"
    )
    env = os.environ | {"PYTHONHASHSEED": "0"}
    printed = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert printed[0] == printed[1]
    batch = next(read_batches(load_source("digits", class_conditional=True), 5, range(1000, 1001), 32))
    assert printed[0].split()[1:] == [str(label) for label in batch["label"]]


def test_reading_ahead_is_bounded():
    """However slow the reader, at most two batches or two chunks per thread are read ahead."""
    source = Counting(10_000)
    with contextlib.closing(read_batches(source, 0, range(1000), 2 * CHUNK_SIZE)) as batches:
        for _ in range(3):
            next(batches)
        time.sleep(0.2)
        assert len(source.asked) <= 3 * 2 + max(2 * 2, 2 * NUM_THREADS) + 1


def test_examples_are_read_in_order():
    source = Counting(1000)
    indices = np.random.default_rng(0).permutation(1000)[:333]
    read = [piece["label"] for piece in read_examples(source, indices)]
    np.testing.assert_array_equal(np.concatenate(read), indices)


def test_an_error_in_a_source_reaches_the_reader():
    class Failing(Counting):
        def __getitem__(self, indices):
            raise ValueError("the third image is gone")

    with pytest.raises(ValueError, match="the third image is gone"):
        next(read_batches(Failing(10), 0, range(5), 4))
