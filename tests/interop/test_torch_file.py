import io
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.torch_format import Storage, saved_by_torch, tensor

from diffusion_distillation.errors import InputError
from diffusion_distillation.interop.torch_file import read_tensors

SIX = np.arange(6, dtype=np.float32)
SMALL = {"a.weight": SIX.reshape(2, 3), "a.bias": SIX[:2], "count": np.array(7), "turned": SIX.reshape(2, 3).T}


@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_of_four_types_are_read(legacy):
    arrays = SMALL | {"half": SIX.astype(np.float16), "brain": SIX.reshape(3, 2).astype(jnp.bfloat16)}
    found = read_tensors(saved_by_torch(arrays, legacy), "w.pth")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_an_input_error(legacy):
    """Some changes, such as in a number, go unnoticed by any reader."""
    rng, content = np.random.default_rng(0), saved_by_torch(SMALL, legacy)
    errors = 0
    for _ in range(1000):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            read_tensors(bytes(damaged), "w.pth")
        except InputError:
            errors += 1
    assert errors > 200


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file_is_refused(legacy):
    content = saved_by_torch(SMALL, legacy)
    for size in range(0, len(content), 7):
        with pytest.raises(InputError, match=r"w\.pth: .*(cannot be read|ends within|does not start|asks for)"):
            read_tensors(content[:size], "w.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: tensor(Storage("9", SIX), 1, (2, 3), (3, 1)), r"\[2, 3\] beyond the end"),
        (lambda: tensor(Storage("9", SIX), 0, (2, 3), (4, 1)), r"\[2, 3\] beyond the end"),
        (lambda: tensor(Storage("9", SIX), 0, (1 << 40,), (0,)), "beyond the end"),
        (lambda: tensor(Storage("9", SIX), -1, (2,), (1,)), "with invalid sizes"),
        (lambda: tensor(Storage("9", SIX), 5, (2,), (-1,)), "with invalid sizes"),
        (lambda: tensor(Storage("9", SIX), 0, (2.0,), (1,)), "with invalid sizes"),
        (lambda: tensor(Storage("9", SIX), 0, (2, 3), (3,)), "with invalid sizes"),
        (lambda: tensor(Storage("9", SIX, size=1 << 40), 0, (6,), (1,)), "ends within the array '9'"),
        (lambda: tensor(Storage("9", SIX, kind="DoubleStorage"), 0, (6,), (1,)), r"asks for torch\.DoubleStorage"),
        (lambda: tensor("no storage", 0, (6,), (1,)), "instead of a tensor|cannot be read"),
        (lambda: "text", "holds a str instead of a tensor"),
    ],
)
def test_a_wrong_description_of_a_tensor_is_refused(value, message, legacy):
    with pytest.raises(InputError, match=message):
        read_tensors(saved_by_torch(SMALL, legacy, value=value()), "w.pth")


def test_views_of_one_array_are_read():
    shared = Storage("9", SIX)
    content = saved_by_torch({}, turned=tensor(shared, 0, (3, 2), (1, 3)), part=tensor(shared, 2, (2,), (2,)))
    found = read_tensors(content, "w.pth")
    np.testing.assert_array_equal(found["turned"], SIX.reshape(2, 3).T)
    np.testing.assert_array_equal(found["part"], [2, 4])


def test_a_file_without_a_dictionary_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1]))
    with pytest.raises(InputError, match="holds a list instead of a dictionary"):
        read_tensors(file.getvalue(), "w.pth")
