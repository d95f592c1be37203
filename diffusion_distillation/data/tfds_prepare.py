"""Downloading and preparing datasets with TensorFlow Datasets (TFDS). Only this module needs TensorFlow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError


def prepare_dataset(name: str, data_dir: Any) -> str:
    """Download a TFDS dataset and write it as array_record files, which have random access.

    Args:
      name: in TFDS, with its config if it has any: 'cifar10', 'lsun/bedroom'.
      data_dir: the folder of prepared datasets.

    Returns:
      The folder of the dataset.

    Raises:
      InputError: if TensorFlow is not installed, TFDS has no such dataset, files must be downloaded by hand, or the
        download or the disk fails.
    """
    try:
        import tensorflow  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(f'{error}. Preparing data needs TensorFlow: pip install -e ".[prepare]"') from None
    try:
        builder = _builder(name, str(data_dir))
        builder.download_and_prepare()
    except tfds.core.registered.DatasetNotFoundError:
        raise InputError(
            f"TFDS has no dataset {name!r}: see https://www.tensorflow.org/datasets/catalog for the names."
        ) from None
    except (AssertionError, OSError) as error:  # missing files that need a manual download; network; disk
        raise InputError(f"{name} cannot be prepared: {error}") from error
    return str(builder.data_path)


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    if dataset == "lsun":
        return _lsun_by_lmdb()(config=config, data_dir=data_dir, file_format="array_record")
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")


def _lsun_by_lmdb() -> Any:
    """Return TFDS's builder of LSUN, changed to read the LMDB with the lmdb package.

    TFDS reads it with tensorflow-io, which has no release for a current TensorFlow.
    """
    import lmdb
    from tensorflow_datasets.image.lsun import Lsun

    class LsunByLmdb(Lsun, skip_registration=True):
        name = "lsun"

        def _generate_examples(self, extracted_dir: str, file_path: str) -> Iterator[tuple[int, dict[str, Any]]]:
            with (
                lmdb.open(str(Path(extracted_dir, file_path)), readonly=True, lock=False) as database,
                database.begin() as transaction,
            ):
                for number, (key, jpeg) in enumerate(transaction.cursor()):
                    yield number, {"id": key.decode(), "image": jpeg}

    return LsunByLmdb
