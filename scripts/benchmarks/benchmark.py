"""Time the network, training and sampling, alone or in turns with PyTorch, and print tables.

    python scripts/benchmarks/benchmark.py --out=runs/benchmark.json
    make peer && python scripts/benchmarks/benchmark.py --peer=.venv-peer/bin/python --out=runs/benchmark.json

--config and its overrides choose the network, a U-Net or a DiT; by default, configs/cifar_base.py with a quarter of the
channels and two blocks per level. Each kind of work of each library has its own process, which is idle while another
one is timed. A turn is --seconds of calls, one after another. Tables show medians over turns. On Linux, set
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 as the Makefile does. JAX uses the same devices as in training; set JAX_PLATFORMS,
JAX_NUM_CPU_DEVICES or CUDA_VISIBLE_DEVICES to choose others. PyTorch runs in the Python that --peer names, eagerly and
compiled. The script first checks that it computes the same outputs from the same parameters.

Columns: images/s; our rate divided by PyTorch's better one; the network's arithmetic as a share of the rate of a matrix
product in the same run; seconds of the first call, most of which is compilation; and the peak memory of the process in
a turn. On an accelerator, a call of training does train.substeps updates, as training does, and memory is the
accelerator's.

Training is timed with the config's dropout and without, because PyTorch samples dropout masks slowly on CPUs. A DiT has
no dropout: choose --work without base_step_without_dropout.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from turns import Timed, Worker, take_turns
from worker import product_size

from diffusion_distillation import cli
from diffusion_distillation.config import load, resolve
from diffusion_distillation.errors import InputError, RunError
from diffusion_distillation.networks.model import count_params, init_params, make_network
from diffusion_distillation.runtime.files import as_path, write_atomic

HERE = Path(__file__).parent
WORK = ("base_step", "base_step_without_dropout", "distillation_step", "forward", "sample 1", "sample 4", "sample 64")
# Arithmetic of one call, in forward passes.
FORWARDS = {"base_step": 3, "base_step_without_dropout": 3, "distillation_step": 5, "forward": 1}

CONFIG = cli.define_config()
IMAGE_SHAPE = flags.DEFINE_list("image_shape", ["32", "32", "3"], "Height, width and channels of the images.")
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["16"], "Images per training step or call.")
DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types of the activations.")
WHAT = flags.DEFINE_list("work", list(WORK), "Kinds of work to time; 'sample 4' samples in 4 steps.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns per kind of work.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 2, "Length of a turn.", lower_bound=0)
PEER = flags.DEFINE_string("peer", None, "A Python with torch to compare with, as from make peer.")
OUT = flags.DEFINE_string("out", None, "A JSON file to save all results in.")


def main() -> None:
    unknown = [what for what in WHAT.value if what not in FORWARDS and not re.fullmatch(r"sample [1-9]\d*", what)]
    if unknown:
        raise InputError(f"--work={','.join(unknown)}: choose from {', '.join(FORWARDS)} and 'sample N'.")
    if len(IMAGE_SHAPE.value) != 3 or not all(size.isdigit() and int(size) for size in IMAGE_SHAPE.value):
        raise InputError(f"--image_shape={','.join(IMAGE_SHAPE.value)} must be height, width and channels: 32,32,3.")
    if PEER.value is not None and shutil.which(PEER.value) is None:
        raise InputError(
            f"--peer={PEER.value} is not a program. Pass a Python that has torch, such as the one of make peer."
        )
    jax.config.update("jax_platforms", "cpu")  # leave accelerators to the timed processes
    shape = tuple(map(int, IMAGE_SHAPE.value))
    config = base_config()
    config.model.dtype = "float32"  # of the expected output
    network = make_network(resolve(config).model, shape, 1)
    params = init_params(network, jax.random.key(0), shape, 1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.02 * rng.standard_normal(leaf.shape, np.float32), params)
    x, logsnr = rng.standard_normal((4, *shape), np.float32), np.linspace(-5, 5, 4, dtype=np.float32)
    apply = jax.jit(network.apply)
    out = apply({"params": params}, x, logsnr)
    # Count the operations for another platform: the CPU kernels need fewer.
    lowered = apply.trace({"params": params}, x, logsnr).lower(lowering_platforms=("tpu",))
    flops = lowered.cost_analysis()["flops"] / len(x)
    machine = f"{cpu_model()}, {os.cpu_count()} cores"
    print(f"{machine}; {count_params(params):,} parameters, {flops / 1e9:.2f} GFLOP per forward pass per image")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "parameters.npz"
        np.savez(file, **flatten_dict({"params": params}, sep="/"), x=x, logsnr=logsnr, out=out)
        for dtype in DTYPES.value:
            for batch in map(int, BATCH_SIZES.value):
                measured = []
                for row in measure(config, file, dtype, batch, flops):
                    print(f"{row['work']}: {1e3 * row['seconds']:.2f} ms, {row['worker']}", file=sys.stderr, flush=True)
                    measured.append(row)
                print("\n" + table(measured, dtype, batch), flush=True)
                rows += measured
    if OUT.value:
        write_atomic(as_path(OUT.value), json.dumps({"machine": machine, "rows": rows}, indent=1))


def base_config() -> ConfigDict:
    """The config whose network and training are timed."""
    if CONFIG.value is not None:
        config = CONFIG.value
        config.model.eval_guidance = 0.0  # the timed network has no classes
        return config
    config = load(HERE.parents[1] / "configs" / "cifar_base.py")
    config.model.args.update(ch=64, emb_ch=256, num_res_blocks=2)
    return config


def configs(config: ConfigDict, dtype: str, batch: int) -> dict[str, Any]:
    """The configs of training, with and without dropout, and of distillation."""
    base = config.copy_and_resolve_references()
    base.model.dtype, base.train.batch_size = dtype, batch
    without_dropout = base.copy_and_resolve_references()
    if "dropout" in base.model.args:
        without_dropout.model.args.dropout = 0.0
    ladder = without_dropout.copy_and_resolve_references()  # like distillation configs
    ladder.distillation = ConfigDict({"teacher_checkpoint_path": "not read", "start_num_steps": 8})
    made = {"base": base, "without_dropout": without_dropout, "ladder": ladder}
    return {name: resolve(config).to_dict() for name, config in made.items()}


def measure(config: ConfigDict, file: Path, dtype: str, batch: int, flops: float) -> Iterator[dict[str, Any]]:
    """Time all kinds of work in turns. Yields a row for each kind and worker."""
    commands = [[sys.executable, str(HERE / "ours.py")]]
    if PEER.value:
        commands += [[PEER.value, str(HERE / "peer.py"), *compiled] for compiled in ([], ["--compile"])]
    setup = {"file": str(file), **configs(config, dtype, batch)}
    errors, platforms = [], {}
    for command in commands:
        worker = Worker(command, setup)
        platforms[worker.platform] = worker.name
        if len(platforms) > 1:
            where = ", ".join(f"{name} on {platform}" for platform, name in platforms.items())
            raise RunError(f"The libraries use different devices: {where}. Set JAX_PLATFORMS to choose JAX's.")
        errors.append(worker.ask("error")["error"])
        exact = dtype == "float32" and worker.platform == "cpu"  # elsewhere, products are rounded more by default
        if errors[-1] > (1e-4 if exact else 0.05):
            raise RunError(f"{worker.name} computes another function: its relative error is {errors[-1]:.1e}.")
        worker.close()
    for what in [*WHAT.value, "product"]:
        timed = [Timed(command, setup, what, batch) for command in commands]
        take_turns(timed, rounds=ROUNDS.value, seconds=SECONDS.value)
        for one, error in zip(timed, errors, strict=True):
            row = {"work": what, "dtype": dtype, "batch": batch, "error": error, **one.result()}
            if what == "product":
                operations = 2 * product_size(one.worker.platform) ** 3 * one.worker.devices
            else:
                operations = (FORWARDS.get(what) or int(what.split()[1])) * flops * batch
            yield {
                **row,
                "images_per_sec": batch / row["seconds"],
                "flops_per_sec": operations / row["seconds"],
            }


def table(rows: Sequence[dict[str, Any]], dtype: str, batch: int) -> str:
    """Format rows as a Markdown table."""
    ours, *peers = dict.fromkeys(row["worker"] for row in rows)
    found = {(row["work"], row["worker"]): row for row in rows}
    product = found["product", ours]["flops_per_sec"]
    head = [f"{dtype}, batch {batch}", ours, *peers, *(["ratio"] if peers else []), "of a product"]
    head += ["first call", *(f"{name.split()[0].rstrip(',')} GB" for name in (ours, *peers[:1]))]
    lines = [head, ["---"] * len(head)]
    for what in dict.fromkeys(row["work"] for row in rows if row["work"] != "product"):
        of_ours, *others = (found[what, name] for name in (ours, *peers))
        line = [what.replace("_", " "), *(f"{row['images_per_sec']:.1f}" for row in (of_ours, *others))]
        if others:
            line.append(f"{of_ours['images_per_sec'] / max(row['images_per_sec'] for row in others):.2f}")
        line += [f"{of_ours['flops_per_sec'] / product:.0%}", f"{of_ours['first_call_seconds']:.1f} s"]
        line += [f"{row['peak_bytes'] / 1e9:.2f}" if row["peak_bytes"] else "-" for row in (of_ours, *others[:1])]
        lines.append(line)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    rates = ", ".join(f"{found['product', name]['flops_per_sec'] / 1e9:,.0f} ({name})" for name in (ours, *peers))
    begun = rows[0]["work"]
    starts = ", ".join(f"{found[begun, name]['start_to_first_seconds']:.1f} s ({name})" for name in (ours, *peers))
    start = f"From the start of the process to the end of its first {begun.replace('_', ' ')}: {starts}"
    return f"{text}\n\nA matrix product: GFLOP/s {rates}. {start}."


def cpu_model() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else "unknown processor"


if __name__ == "__main__":
    cli.run(main)
