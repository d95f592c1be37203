"""The metadata of a model: everything besides the parameters that sampling and teaching need, stored as JSON."""

import dataclasses
import functools
import os
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from ..config import resolve, to_share
from ..errors import InputError
from ..latents import AutoencoderInfo, Shape
from ..networks.model import Network, init_params, make_network
from ..pretrained import is_pretrained
from ..runtime.files import parse_json, tuples_for_lists
from ..shapes import Params
from ..trust import check_foreign
from .integrity import unseal

FORMAT_VERSION = 2
PIXELS_VERSION = 1  # of models of pixels, which earlier versions of this package read
AUTOENCODER = "vae"  # the folder of the autoencoder in the folder of a model to share


class NewerFormatError(InputError):
    """A checkpoint of a later version of this package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """What sampling and teaching need besides the parameters.

    Attributes:
      config: the resolved config of the run.
      image_shape: (height, width, channels) of the images, which a model of latents decodes.
      num_classes: 1 for an unconditional network.
      num_steps: the sampling steps that a student was distilled for; 0 for a base model, which takes any number.
      step: the updates done. Default: 0.
      class_names: one name per class; None, the default, if the classes have no names.
      autoencoder: of a model of latents; None, the default, for a model of pixels.
      autoencoder_path: where the autoencoder is; None without one.
    """

    config: ConfigDict
    image_shape: Shape
    num_classes: int
    num_steps: int
    step: int = 0
    class_names: tuple[str, ...] | None = None
    autoencoder: AutoencoderInfo | None = None
    autoencoder_path: str | None = None

    @property
    def shape(self) -> Shape:
        """(height, width, channels) of what the network sees: images, or their latents."""
        return self.image_shape if self.autoencoder is None else self.autoencoder.latent_shape(self.image_shape)

    def to_share(self) -> "Metadata":
        """A copy for a folder to share, which has the autoencoder too: without what `config.to_share` removes."""
        path = None if self.autoencoder is None else AUTOENCODER
        return dataclasses.replace(self, config=to_share(self.config), autoencoder_path=path)

    def to_json(self) -> dict[str, Any]:
        """The metadata in JSON's types. The step is not included: checkpoints and archives store it on their own."""
        names = {} if self.class_names is None else {"class_names": list(self.class_names)}
        info = self.autoencoder
        latents = {} if info is None else {"autoencoder": dataclasses.asdict(info) | {"path": self.autoencoder_path}}
        return {
            "format_version": PIXELS_VERSION if info is None else FORMAT_VERSION,
            "config": self.config.to_dict(),
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "num_steps": self.num_steps,
            **names,
            **latents,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], step: int, origin: epath.Path) -> "Metadata":
        """The inverse of `to_json`.

        Args:
          values: what `to_json` returned.
          step: the updates done.
          origin: the file that the values are from. It decides whether the config may name code to run.

        Raises:
          InputError: if other people may have written the file and its config names code to run.
          ValueError: if the class names are not one string per class.
        """
        check_foreign(values["config"], origin)
        names = values.get("class_names")
        latents = values.get("autoencoder")
        info, path = (None, None) if latents is None else _autoencoder(latents, origin)
        if names is not None and [type(name) for name in names] != [str] * values["num_classes"]:
            raise ValueError("class_names must be one string per class")
        return cls(
            config=resolve(ConfigDict(values["config"])),
            image_shape=tuple(values["image_shape"]),
            num_classes=values["num_classes"],
            num_steps=values["num_steps"],
            step=step,
            class_names=None if names is None else tuple(names),
            autoencoder=info,
            autoencoder_path=path,
        )


def _autoencoder(values: dict[str, Any], origin: epath.Path) -> tuple[AutoencoderInfo, str]:
    """An autoencoder, and its path: absolute, or relative to the folder of the metadata, or a packaged autoencoder."""
    values = tuples_for_lists(values)
    path = values.pop("path")
    if not ("://" in path or os.path.isabs(path) or is_pretrained(path, origin.parent)):
        path = os.fspath(origin.parent / path)
    return AutoencoderInfo(**values), path


def read_values(checkpoint: epath.Path) -> dict[str, Any]:
    """Read the metadata of a checkpoint, as JSON.

    Raises:
      NewerFormatError: if a later version of this package wrote it.
      ValueError: if the metadata are damaged.
    """
    values = unseal(parse_json((checkpoint / "metadata" / "metadata").read_text()))
    if values["format_version"] > FORMAT_VERSION:
        raise NewerFormatError(
            f"{str(checkpoint)!r} has format {values['format_version']}. This version of diffusion_distillation reads "
            f"formats up to {FORMAT_VERSION}. Upgrade the package."
        )
    return values


def abstract_params(metadata: Metadata) -> Params:
    """The shapes and dtypes of a model's parameters, as a tree of `jax.ShapeDtypeStruct`."""
    network = make_network(metadata.config.model, metadata.shape, metadata.num_classes)
    return _abstract_params(network, metadata.shape, metadata.num_classes)


@functools.lru_cache(maxsize=16)  # a ladder asks for each student, and its report for each checkpoint
def _abstract_params(network: Network, shape: tuple[int, int, int], num_classes: int) -> Params:
    return jax.eval_shape(lambda: init_params(network, jax.random.key(0), shape, num_classes))
