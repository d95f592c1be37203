"""Read arrays from files and fit them to a network's parameters. Every reader of models uses these functions."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError

from ..errors import InputError
from ..shapes import Params

MAX_NAMES = 5  # of parameters in an error message


def read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file. The header is checked before any array is read.

    Raises:
      InputError: if there is no such file, or it cannot be read as a safetensors file.
    """
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise InputError(f"There is no {str(path)!r}.") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a safetensors file ({error}).") from None


def fit_params(arrays: dict[tuple[str, ...], Any], like: Params, origin: str) -> Params:
    """Arrange arrays as the parameters of a network, in float32.

    Attention kernels and biases of an older format, without an axis for heads, are reshaped.

    Args:
      arrays: floating-point arrays by the path of a parameter, such as `("conv_in", "kernel")`.
      like: the shapes of the network's parameters.
      origin: the file that the arrays are from, for error messages.

    Returns:
      A tree like `like`.

    Raises:
      InputError: if parameters are missing, unexpected, not floating-point arrays, or of the wrong shape.

    >>> like = {"dense": {"bias": np.zeros(2)}}
    >>> fit_params({("dense", "bias"): np.ones(2, np.float16)}, like, "file")
    {'dense': {'bias': array([1., 1.], dtype=float32)}}
    >>> fit_params({("dense", "bias"): np.ones(3)}, like, "file")
    Traceback (most recent call last):
      ...
    diffusion_distillation.errors.InputError: file does not fit the network of the config: wrong shape or type:
    dense/bias is [3] in the file and [2] in the network.
    """
    expected = flatten_dict(like)
    missing = [_name(path) for path in expected if path not in arrays]
    unexpected = [_name(path) for path in arrays if path not in expected]
    fitted = {}
    wrong = []
    for path in expected.keys() & arrays.keys():
        array = arrays[path]
        shape = expected[path].shape
        if not isinstance(array, np.ndarray) or not jnp.issubdtype(array.dtype, jnp.floating):
            wrong.append(f"{_name(path)} is not a floating-point array")
        elif array.shape != shape and not (_is_attention(path) and array.size == np.prod(shape)):
            wrong.append(f"{_name(path)} is {list(array.shape)} in the file and {list(shape)} in the network")
        else:
            fitted[path] = np.asarray(array, np.float32).reshape(shape)
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape or type": wrong}
    if any(problems.values()):
        described = "; ".join(f"{problem}: {_shorten(names)}" for problem, names in problems.items() if names)
        raise InputError(f"{origin} does not fit the network of the config: {described}.")
    return unflatten_dict(fitted)


def _shorten(names: list[str]) -> str:
    hidden = len(names) - MAX_NAMES
    return ", ".join(sorted(names)[:MAX_NAMES]) + (f" and {hidden} more" if hidden > 0 else "")


def _is_attention(path: tuple[str, ...]) -> bool:
    return len(path) > 1 and path[-2] in ("q", "k", "v", "proj_out")


def _name(path: tuple[str, ...]) -> str:
    return "/".join(map(str, path))
