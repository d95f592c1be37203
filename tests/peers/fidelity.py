"""Run torch-fidelity, by which other projects measure, on the same weights, images and activations.

It needs the environment of `make peer`. The tests run it; `golden` writes the golden numbers again:

    .venv-peer/bin/python tests/peers/fidelity.py golden --images=natural.npz
    .venv-peer/bin/python tests/peers/fidelity.py weights --out=seeded.pth [--legacy]
    .venv-peer/bin/python tests/peers/fidelity.py network --images=in.npz --out=out.npz [--double]
    .venv-peer/bin/python tests/peers/fidelity.py metrics --activations=in.npz --out=out.json [--double]
    .venv-peer/bin/python tests/peers/fidelity.py images --images=in.npz --out=out.json --kid_subset_size=50
    .venv-peer/bin/python tests/peers/fidelity.py speed --batch_size=32 [--channels_last]

Images are uint8 [n, height, width, 1 or 3], in any number of arrays per file. `images` takes images_1 (samples) and
images_2 (data). Activations are features_1, features_2 and logits_1. Weights have Inception's shapes and random values.
"""

import argparse
import json
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import seeded
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
INCEPTION = "inception-v3-compat"
OUTPUTS = ["2048", "logits_unbiased"]


def stand_in_for_torchvision():
    """torch-fidelity imports torchvision for parts that are not used here. `make peer` does not install it."""
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    for name in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(modules["torchvision.datasets"], name, type(name, (), {}))


stand_in_for_torchvision()
import torch_fidelity  # noqa: E402
from torch_fidelity import feature_extractor_inceptionv3, metric_fid, metric_isc, metric_kid, metric_prc  # noqa: E402
from torch_fidelity.defaults import DEFAULTS  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402

SETTINGS = {
    name: DEFAULTS[name] for name in DEFAULTS if name.startswith(("isc_", "kid_", "prc_", "samples_shuffle", "rng"))
}


def network(double=False):
    """torch-fidelity's network with seeded weights. (In 0.4.0, its float64 setting computes in float32.)"""
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        save_weights(file.name)
        net = FeatureExtractorInceptionV3(INCEPTION, OUTPUTS, feature_extractor_weights_path=file.name)
    if double:
        net.feature_extractor_internal_dtype = torch.float64
        net.double()
    return net


def save_weights(path, legacy=False):
    """Save seeded weights as the network saves its own."""
    no_weights = feature_extractor_inceptionv3.load_state_dict_from_url
    loads = FeatureExtractorInceptionV3.load_state_dict
    try:  # construct the network without downloading its weights
        feature_extractor_inceptionv3.load_state_dict_from_url = lambda *_, **__: {}
        FeatureExtractorInceptionV3.load_state_dict = lambda *_: None
        net = FeatureExtractorInceptionV3(INCEPTION, OUTPUTS)
    finally:
        feature_extractor_inceptionv3.load_state_dict_from_url = no_weights
        FeatureExtractorInceptionV3.load_state_dict = loads
    state = net.state_dict()
    for name, array in seeded.weights({name: value.shape for name, value in state.items()}).items():
        state[name].copy_(torch.from_numpy(array))
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)


def rgb(images):
    """[n, 3, height, width]."""
    images = np.broadcast_to(images, (*images.shape[:-1], 3))
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


@torch.no_grad()
def outputs(net, images):
    """Features and logits as NumPy arrays."""
    parts = [net(batch) for batch in rgb(images).split(16)]
    return [torch.cat(part).numpy() for part in zip(*parts, strict=True)]


def of_all(net, arrays):
    """{'<name>_features': ..., '<name>_logits': ...} for images by name."""
    found = {}
    for name, images in arrays.items():
        found[f"{name}_features"], found[f"{name}_logits"] = outputs(net, images)
    return found


def metrics(features_1, features_2, logits_1, double=False):
    """All metrics of torch-fidelity with its default settings. It computes in float32 by default."""
    arrays = (torch.from_numpy(array) for array in (features_1, features_2, logits_1))
    features_1, features_2, logits_1 = (array.double() if double else array for array in arrays)
    statistics = (metric_fid.fid_features_to_statistics(features) for features in (features_1, features_2))
    return {
        **metric_fid.fid_statistics_to_metric(*statistics, verbose=False),
        **metric_kid.kid_features_to_metric(features_1, features_2, verbose=False),
        **metric_isc.isc_features_to_metric(logits_1),
        **metric_prc.prc_features_to_metric(features_1, features_2, verbose=False),
    }


class Images(torch.utils.data.Dataset):
    """A dataset of images for torch-fidelity."""

    def __init__(self, images):
        self.images = rgb(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def end_to_end(images_1, images_2, kid_subset_size):
    """Metrics from images, by torch-fidelity's public function."""
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        save_weights(file.name)
        return torch_fidelity.calculate_metrics(
            input1=Images(images_1), input2=Images(images_2), fid=True, kid=True, isc=True, prc=True, cuda=False,
            feature_extractor=INCEPTION, feature_extractor_weights_path=file.name, kid_subset_size=kid_subset_size,
            cache=False, verbose=False,
        )  # fmt: skip


def write_golden(natural):
    """Write the golden numbers: for a few images, two of them natural, and for seeded activations."""
    images = {kind: seeded.images(kind, 2, 32, 32) for kind in ("noise", "smooth", "grey")}
    images |= {"natural": natural, "wide": seeded.images("smooth", 2, 150, 400)}
    np.savez_compressed(GOLDEN / "inception.npz", natural=natural, **of_all(network(), images))
    found = {"torch-fidelity": torch_fidelity.__version__, "settings": SETTINGS}
    for name, double in (("float32", False), ("float64", True)):
        found[name] = metrics(**seeded.activations(), double=double)
    (GOLDEN / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")


@torch.no_grad()
def speed(batch_size, channels_last, seconds):
    """Images/s, and the number of threads."""
    net, images = network(), rgb(seeded.images("noise", batch_size, 32, 32))
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    net(images)
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        net(images)
        batches += 1
    return f"{batches * batch_size / (time.perf_counter() - start):.1f} images/s, {torch.get_num_threads()} threads"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["golden", "weights", "network", "metrics", "images", "speed"])
    for name in ("images", "activations", "out"):
        parser.add_argument(f"--{name}", type=Path)
    for name in ("double", "legacy", "channels_last"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--kid_subset_size", type=int, default=DEFAULTS["kid_subset_size"])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    match args.what:
        case "golden":
            write_golden(np.load(args.images)["natural"])
        case "weights":
            save_weights(args.out, args.legacy)
        case "network":
            np.savez(args.out, **of_all(network(args.double), np.load(args.images)))
        case "metrics":
            args.out.write_text(json.dumps(metrics(**np.load(args.activations), double=args.double)))
        case "images":
            args.out.write_text(json.dumps(end_to_end(**np.load(args.images), kid_subset_size=args.kid_subset_size)))
        case "speed":
            print(speed(args.batch_size, args.channels_last, args.seconds))


if __name__ == "__main__":
    main()
