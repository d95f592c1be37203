"""Makes the weights of FID's Inception network ready for use here, once: a .pth file becomes a safetensors file.

    python scripts/convert_inception.py --weights=pt_inception-2015-12-05-6726825d.pth

The file is among the releases of pytorch-fid (fid_weights); PyTorch is not needed to read it. The result goes to the
cache folder, where it is found by itself, or to --out: then DIFFUSION_DISTILLATION_INCEPTION must say where. Files of
another checksum are refused, and nothing that a file may have in it besides arrays is run.
"""

import safetensors.numpy
from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation import inception
from diffusion_distillation.interop.torch_file import read_tensors
from diffusion_distillation.runtime.files import as_path, write_atomic
from diffusion_distillation.runtime.hashing import sha256

WEIGHTS = flags.DEFINE_string("weights", None, f"The file {inception.PUBLISHED}.", required=True)
OUT = flags.DEFINE_string("out", None, "Where the weights go; by default into the cache folder.")
SHA256 = flags.DEFINE_string("sha256", inception.PUBLISHED_SHA256, "The checksum that the file must have.")


def main() -> None:
    """Runs the script."""
    source, out = as_path(WEIGHTS.value), as_path(OUT.value or inception.default_path())
    if not source.is_file():
        raise InputError(f"--weights={source}: there is no such file; it is published at {inception.PUBLISHED_AT}.")
    content = source.read_bytes()
    check(content, str(source))
    tensors = read_tensors(content, str(source))
    weights = {name: array for name, array in tensors.items() if not name.endswith(".bn.num_batches_tracked")}
    inception.check_weights(weights, source)
    write_atomic(out, safetensors.numpy.save(weights))
    print(f"{out}: {inception.identity_of(weights)}, {len(weights)} arrays")


def check(content: bytes, origin: str) -> None:
    """Sees to it that the file is the one that is wanted; raises an InputError if not."""
    published = SHA256.value == inception.PUBLISHED_SHA256
    if published and len(content) != inception.PUBLISHED_BYTES:
        raise InputError(
            f"{origin} has {len(content):,} bytes; {inception.PUBLISHED} has {inception.PUBLISHED_BYTES:,}. Download "
            f"it again from {inception.PUBLISHED_AT}."
        )
    digest = sha256([content])
    if digest != SHA256.value.lower():
        raise InputError(
            f"{origin} has sha256 {digest}, not {SHA256.value}. "
            + (f"Download it again from {inception.PUBLISHED_AT}." if published else "Is --sha256 that of this file?")
        )


if __name__ == "__main__":
    cli.run(main)
