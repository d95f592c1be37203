"""Datasets that TensorFlow Datasets (TFDS) has prepared, read from array_record files without TensorFlow."""

import os
from typing import Any

from etils import epath

from ..errors import InputError
from .decoding import open_encoded_images
from .image_folder import cars_folder
from .source import Source
from .transforms import Transform

LSUN_CONFIGS = {"bedroom": "lsun/bedroom", "church": "lsun/church_outdoor"}


def cifar10(class_conditional: bool = False, data_dir: str | None = None) -> Source:
    """Open CIFAR-10: 50,000 training images, 32x32, 10 classes.

    Args:
      class_conditional: whether labels are used.
      data_dir: the folder of prepared datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    return open_encoded_images(TfdsRecords("cifar10", "train", _label(class_conditional), data_dir), Transform(32))


def imagenet(
    image_size: int, class_conditional: bool = True, pre_shrunk: bool = False, data_dir: str | None = None
) -> Source:
    """Open ImageNet: the central squares of 1,281,167 training images in 1,000 classes, resized by area.

    Args:
      image_size: height and width.
      class_conditional: whether labels are used.
      pre_shrunk: whether to read `imagenet_resized` (Chrabaszcz et al. 2017; 8, 16, 32 or 64 pixels) instead of
        `imagenet2012`. It is free to download, 14 GB at 64 pixels, but its images were squeezed into squares, not
        cropped.
      data_dir: the folder of prepared datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    if pre_shrunk and image_size not in (8, 16, 32, 64):
        raise InputError(f"config.dataset.args.image_size={image_size} with pre_shrunk must be 8, 16, 32 or 64.")
    name = f"imagenet_resized/{image_size}x{image_size}" if pre_shrunk else "imagenet2012"
    return open_encoded_images(
        TfdsRecords(name, "train", _label(class_conditional), data_dir), Transform(image_size, resize="area")
    )


def lsun(subset: str, image_size: int, data_dir: str | None = None) -> Source:
    """Open LSUN: the central square of each image, resized by antialiased bilinear interpolation.

    Args:
      subset: 'bedroom' (3,033,042 training images) or 'church' (126,227; church_outdoor).
      image_size: height and width.
      data_dir: the folder of prepared datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    if subset not in LSUN_CONFIGS:
        raise InputError(f"config.dataset.args.subset={subset!r} must be one of {sorted(LSUN_CONFIGS)}.")
    return open_encoded_images(TfdsRecords(LSUN_CONFIGS[subset], "train", None, data_dir), Transform(image_size))


def stanford_cars(
    image_size: int,
    class_conditional: bool = False,
    path: str | None = None,
    data_dir: str | None = None,
    on_error: str = "skip",
) -> Source:
    """Open Stanford Cars: the 16,185 images of its training and test sets, 196 models, squeezed into squares.

    Args:
      image_size: height and width.
      class_conditional: whether labels are used. Only TFDS has the labels of both sets.
      path: a folder with cars_train and cars_test, as Kaggle and torchvision lay it out; by default the dataset is read
        from TFDS (cars196).
      data_dir: the folder of prepared datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      on_error: for a folder, 'skip' broken images, with a warning that names them, or 'raise' an error.
    """
    transform = Transform(image_size, crop=False, upright=path is not None)
    if path is None:
        return open_encoded_images(TfdsRecords("cars196", "train+test", _label(class_conditional), data_dir), transform)
    if class_conditional:
        raise InputError(
            "config.dataset.args.class_conditional=True needs the labels that TFDS has. Omit config.dataset.args.path, "
            f"and prepare the dataset with {prepare_command('cars196', data_dir)}"
        )
    return cars_folder(path, transform, on_error)


def tfds_dataset(
    name: str,
    image_size: int,
    split: str = "train",
    label_key: str | None = None,
    crop: bool = True,
    resize: str = "bilinear",
    data_dir: str | None = None,
) -> Source:
    """Open any TFDS dataset with one image per example.

    Args:
      name: the name in TFDS, such as 'oxford_flowers102' or 'emnist/letters'.
      image_size: height and width that images are resized to.
      split: such as 'train', 'train+test' or 'train[:90%]'.
      label_key: the feature with the class; by default labels are not used.
      crop: whether to take the central square of each image; otherwise images are squeezed into squares.
      resize: 'bilinear' (antialiased) or 'area'.
      data_dir: the folder of prepared datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    records = TfdsRecords(name, split, label_key, data_dir)
    return open_encoded_images(records, Transform(image_size, crop, resize, 1 if records.channels == 1 else 3))


def prepare_command(name: str, data_dir: str | None) -> str:
    """Return the command that prepares a dataset.

    >>> prepare_command("cifar10", None)
    'diffusion_distillation prepare_data --dataset=cifar10'
    """
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"diffusion_distillation prepare_data --dataset={name}{where}"


def data_folder(data_dir: str | None) -> epath.Path:
    """Return the folder of prepared datasets: data_dir, $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


class TfdsRecords:
    """The examples of a prepared split as `decoding.EncodedImages`.

    Args:
      name: of the dataset, if needed with its config and version.
      split: in TFDS's notation.
      label_key: the feature with the class; None to ignore labels.
      data_dir: see `data_folder`.

    Attributes:
      channels: of the images; None if the dataset does not specify it.
    """

    trusted = True

    def __init__(self, name: str, split: str, label_key: str | None, data_dir: str | None):
        builder = _builder(name, data_dir)
        self.title = f"{builder.info.full_name}:{split}"
        self._image_key, self.channels, skip = self._find_image(builder.info.features)
        self._label_key = label_key
        self.num_classes = self._count_classes(builder.info.features)
        try:
            self._records = builder.as_data_source(split, decoders=skip)
        except NotImplementedError:
            raise InputError(
                f"TFDS dataset {name!r} in {builder.data_path} is prepared as {builder.info.file_format.value}, which "
                f"has no random access. Delete that folder and prepare it again: {prepare_command(name, data_dir)}"
            ) from None
        except ValueError as error:
            raise InputError(
                f"Split {split!r} of TFDS dataset {name!r} cannot be read ({error}); its splits are "
                f"{', '.join(builder.info.splits)}."
            ) from None
        files = sorted((file.name, file.stat().length, file.stat().mtime) for file in builder.data_path.iterdir())
        self.key = {"dataset": self.title, "label": label_key, "files": files}
        self.listing = {"dataset": self.title, "label": label_key, "files": [file[:2] for file in files]}
        names = getattr(builder.info.features[label_key], "names", None) if label_key else None
        self.class_names = tuple(names) if names else None

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """Return the number of the example and the dataset's title."""
        return f"Example {index} of {self.title}"

    def read(self, index: int) -> tuple[bytes, int]:
        """Read the stored bytes of the image, and its label."""
        example = self._records[int(index)]
        return example[self._image_key], int(example[self._label_key]) if self._label_key else 0

    def _find_image(self, features: Any) -> tuple[str, int | None, dict[str, Any]]:
        """Return the key of the image, its channels, and the decoders that keep images encoded."""
        import tensorflow_datasets as tfds

        keys = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        if len(keys) != 1:
            raise InputError(f"TFDS dataset {self.title} must have one image per example; it has {keys or 'none'}.")
        return keys[0], features[keys[0]].shape[-1], {keys[0]: tfds.decode.SkipDecoding()}

    def _count_classes(self, features: Any) -> int:
        if self._label_key is None:
            return 1
        classes = {key: getattr(feature, "num_classes", None) for key, feature in features.items()}
        if not classes.get(self._label_key):
            known = sorted(key for key, count in classes.items() if count)
            raise InputError(
                f"config.dataset.args.label_key={self._label_key!r} is not a class of TFDS dataset {self.title}; "
                f"it has {known or 'none'}."
            )
        return classes[self._label_key]


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    folder = data_folder(data_dir)
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(folder))
    except tfds.core.registered.DatasetNotFoundError:
        raise InputError(
            f"TFDS dataset {name!r} is not prepared in {str(folder)!r}. Prepare it once, which needs TensorFlow:\n"
            f'  pip install -e ".[prepare]"\n  {prepare_command(name, data_dir)}\n'
            "If it is elsewhere, set config.dataset.args.data_dir or $TFDS_DATA_DIR."
        ) from None


def _label(class_conditional: bool) -> str | None:
    return "label" if class_conditional else None
