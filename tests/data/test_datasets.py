"""A user's own sources, by the name of the function that makes them."""

import numpy as np
import pytest

from diffusion_distillation.data import ArraySource, load_source, read_batches
from diffusion_distillation.errors import InputError

MODULE = """
import numpy as np

class Stripes:
    num_classes = 3

    def __init__(self, side, count=10):
        self.image_shape, self.count = (side, side, 1), count

    def __len__(self):
        return self.count

    def __getitem__(self, indices):
        label = (indices % 3).astype(np.int32)
        image = np.ones((len(indices), *self.image_shape), np.uint8) * label.astype(np.uint8)[:, None, None, None]
        return {"image": image, "label": label}

def any_stripes(**args):
    return Stripes(**args)

not_a_function = 1
"""


@pytest.fixture(autouse=True)
def my_code(tmp_path, monkeypatch):
    """Write a user's module."""
    (tmp_path / "my_stripes.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ["my_stripes:Stripes", "my_stripes:any_stripes"])
def test_a_users_source_is_loaded_by_name(name):
    source = load_source(name, side=4, count=7, randflip=True)
    assert (len(source), source.image_shape, source.num_classes) == (7, (4, 4, 1), 3)
    batch = next(read_batches(source, 0, range(1), 8))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("digits", dict(class_conditional="no"), "args.class_conditional='no' must be True or False"),
        ("letters", dict(num_images="many"), "num_images='many' must be an integer"),
        ("letters", dict(fonts=3), "fonts=3 must be a string or None"),
        ("my_stripes:flagged", dict(wide="off"), "wide='off' must be True or False"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(monkeypatch, name, args, message):
    """Types are read from annotations. Without one, a default of True or False means bool."""
    import my_stripes

    monkeypatch.setattr(my_stripes, "flagged", lambda wide=True: None, raising=False)
    with pytest.raises(InputError, match=message):
        load_source(name, **args)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("stripes", {}, r"Unknown config.dataset.name='stripes'\..*set 'package.module:function'"),
        ("my_code_2:stripes", {}, r"config.dataset.name='my_code_2:stripes': 'my_code_2' cannot be imported"),
        ("my_broken:stripes", {}, r"'my_broken' cannot be imported \(ModuleNotFoundError: .*no_such_module"),
        ("my_stripes:Stripe", {}, r"has no function 'Stripe'\. Did you mean 'Stripes'\?"),
        ("my_stripes:not_a_function", {}, r"has no function 'not_a_function'"),
        ("my_stripes:Stripes", {}, r"config.dataset.args.side is missing: dataset 'my_stripes:Stripes' needs it"),
        ("my_stripes:Stripes", dict(side=4, cuont=1), r"no config.dataset.args.cuont\. Did you mean 'count'\?"),
    ],
)
def test_unknown_names_and_arguments_are_refused(name, args, message):
    with pytest.raises(InputError, match=message):
        load_source(name, **args)


class Wrong(ArraySource):
    """Two images, with attributes that can be changed."""

    def __init__(self, images=np.zeros((2, 4, 4, 1), np.uint8), labels=np.zeros(2), num_classes=1, **members):  # noqa: B008
        super().__init__(images, labels, num_classes)
        vars(self).update(members)

    def __getitem__(self, indices):
        return super().__getitem__(indices) | vars(self).get("examples", {})


class OneByOne(Wrong):
    def __getitem__(self, index):
        return {"image": np.zeros((4, 4, 1), np.uint8), "label": int(index)}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "this NoneType has no image_shape, num_classes, __len__, __getitem__"),
        ([1, 2], "this list has no image_shape, num_classes"),
        (
            Wrong(image_shape=[4, 4, 1]),
            r"image_shape=\[4, 4, 1\] is not a tuple of integers \(height, width, channels\)",
        ),
        (Wrong(image_shape=(4, 4)), r"image_shape=\(4, 4\) is not a tuple"),
        (Wrong(image_shape=(4, 4, 2)), r"image_shape=\(4, 4, 2\) has 2 channels; it must have 3, or 1 for gray images"),
        (Wrong(images=np.zeros((2, 4, 4, 4), np.uint8)), "has 4 channels"),
        (
            Wrong(class_names=("cats", "dogs")),
            r"class_names=\('cats', 'dogs'\) must be None or a tuple with one string per class, 1 in all",
        ),
        (Wrong(num_classes=0), "num_classes=0 is not an integer of at least 1"),
        (Wrong(images=np.zeros((0, 4, 4, 1), np.uint8)), "this Wrong has no images"),
        (OneByOne(), r"with indices=np.array\(\[0, 1\]\), raised TypeError: only"),
        (Wrong(images=np.zeros((2, 4, 4, 1))), r"two images are float64 .*, not uint8 of shape \(2, 4, 4, 1\)"),
        (Wrong(image_shape=(4, 4, 3)), r"uint8 of shape \(2, 4, 4, 1\), not uint8 of shape \(2, 4, 4, 3\)"),
        (Wrong(examples={"label": np.zeros(2)}), "two labels are float64 .*, not integers"),
        (Wrong(examples={"label": np.zeros((2, 1), int)}), r"two labels are int64 of shape \(2, 1\), not integers"),
        (Wrong(num_classes=3, labels=np.array([0, 3])), r"labels \[0, 3\] are not all among 0 to 2"),
    ],
)
def test_objects_that_are_not_sources_are_refused(monkeypatch, source, message):
    import my_stripes

    monkeypatch.setattr(my_stripes, "any_stripes", lambda: source)
    with pytest.raises(
        InputError, match=rf"config.dataset.name='my_stripes:any_stripes' must return a source.*{message}"
    ):
        load_source("my_stripes:any_stripes")
