"""Convert the weights of FID's Inception network from pytorch-fid's .pth file to a safetensors file. Run it once.

    diffusion_distillation convert_inception --weights=pt_inception-2015-12-05-6726825d.pth

Download the file from the releases of pytorch-fid (fid_weights). PyTorch is not needed. By default, the result goes to
the cache folder, where --features=inception finds it. If you set --out, also set the environment variable
DIFFUSION_DISTILLATION_INCEPTION to this path. A file with another checksum is rejected, and no code in it is run.
"""

import safetensors.numpy
from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation import inception
from diffusion_distillation.interop.torch_file import read_tensors
from diffusion_distillation.runtime.files import as_path, write_atomic
from diffusion_distillation.runtime.hashing import sha256

WEIGHTS = flags.DEFINE_string("weights", None, f"Path of {inception.PUBLISHED}.", required=True)
OUT = flags.DEFINE_string("out", None, "The safetensors file to write; by default in the cache folder.")
SHA256 = flags.DEFINE_string("sha256", inception.PUBLISHED_SHA256, "The expected SHA-256 checksum of the file.")


def main() -> None:
    source, out = as_path(WEIGHTS.value), as_path(OUT.value or inception.default_path())
    if not source.is_file():
        raise InputError(f"--weights={source} does not exist. Download it from {inception.PUBLISHED_AT}.")
    content = source.read_bytes()
    check(content, str(source))
    tensors = read_tensors(content, str(source))
    weights = {name: array for name, array in tensors.items() if not name.endswith(".bn.num_batches_tracked")}
    inception.check_weights(weights, source)
    write_atomic(out, safetensors.numpy.save(weights))
    print(f"{out}: {inception.identity_of(weights)}, {len(weights)} arrays")


def check(content: bytes, origin: str) -> None:
    """Raise an InputError unless the file has the expected checksum."""
    published = SHA256.value == inception.PUBLISHED_SHA256
    if published and len(content) != inception.PUBLISHED_BYTES:
        raise InputError(
            f"{origin} has {len(content):,} bytes instead of {inception.PUBLISHED_BYTES:,}. Download it again from "
            f"{inception.PUBLISHED_AT}."
        )
    digest = sha256([content])
    if digest != SHA256.value.lower():
        raise InputError(
            f"{origin} has SHA-256 {digest} instead of {SHA256.value}. "
            + (f"Download it again from {inception.PUBLISHED_AT}." if published else "Check --sha256 and the file.")
        )


if __name__ == "__main__":
    cli.run(main)
