"""The script run.py of an exported model: it samples with the sampler's file and needs only JAX and flatbuffers."""

import string

from ..checkpoints import Metadata
from ..interop import archive
from ..pipeline import can_be_guided
from .options import FREE, ExportOptions

NAME = "run.py"
SAMPLER = "sampler.jax"


def text(metadata: Metadata, options: ExportOptions) -> str:
    """The text of run.py for the sampler's file of a model."""
    inputs = {"labels": f"index % {metadata.num_classes}"} if metadata.num_classes > 1 else {}
    if can_be_guided(metadata):
        inputs["guidance"] = f"np.full(len(index), {metadata.config.model.eval_guidance}, np.float32)"
    definitions = []
    if options.input == "seed":
        inputs |= {"seed": "np.uint32(seed)", "index": "index"}
    else:
        definitions.append(NOISE.substitute(shape=tuple(metadata.shape)))
        inputs["z"] = "noise(index)"
    if options.num_steps == FREE:
        inputs["num_steps"] = f"np.int32({metadata.num_steps or metadata.config.model.eval_sampling_num_steps})"
    if options.params == "beside":
        definitions.append(PARAMS.substitute(weights=archive.WEIGHTS))
        inputs["params"] = "params"
    return RUN.substitute(
        sampler=SAMPLER,
        size="min(num_images, 256)" if options.batch_size is None else options.batch_size,
        imports="import json\n" if options.params == "beside" else "",
        definitions="".join(definitions),
        inputs=", ".join(f"{name}={value}" for name, value in inputs.items()),
    )


RUN = string.Template('''\
"""Sample images: python run.py 64 0 images.npy (number of images, seed, file). Needs only jax and flatbuffers."""

${imports}import pathlib
import sys

import jax.export
import numpy as np

num_images = int(sys.argv[1])
seed = int(sys.argv[2])
folder = pathlib.Path(__file__).parent
sampler = jax.export.deserialize(bytearray((folder / "$sampler").read_bytes()))
size = $size
${definitions}batches = np.arange(num_images + -num_images % size, dtype=np.int32).reshape(-1, size)
images = [sampler.call($inputs) for index in batches]
np.save(sys.argv[3], np.concatenate(images)[:num_images])
''')

NOISE = string.Template("""\
key = jax.random.key(seed, impl="threefry2x32")
keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i))[0])
noise = lambda index: jax.vmap(lambda key: jax.random.normal(key, $shape, np.float32))(keys(index))
""")

PARAMS = string.Template("""\
raw = memoryview((folder / "$weights").read_bytes())
start = 8 + int.from_bytes(raw[:8], "little")  # the arrays follow a JSON header and its length
header = {name: entry for name, entry in json.loads(bytes(raw[8:start])).items() if name != "__metadata__"}
data = {name: raw[start:][slice(*entry["data_offsets"])] for name, entry in header.items()}
types = {"F32": "<f4", "F16": "<f2"}
params = {name: np.frombuffer(data[name], types[header[name]["dtype"]]).reshape(header[name]["shape"]) for name in data}
""")
