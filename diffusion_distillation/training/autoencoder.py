"""Train a small autoencoder of small images.

The loss is the mean absolute error of the images (L1), plus the Kullback-Leibler divergence (KL) of their latents from
a standard normal distribution, and nothing else (Kingma & Welling 2014). It suffices for small images. Published
autoencoders of large images are also trained with a perceptual loss and a discriminator, without which their images
would be blurred (Rombach et al. 2022, section G).
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float
from ml_collections import ConfigDict

from ..checkpoints import Checkpoints, Metadata
from ..data import Source, read_batches, read_examples
from ..data.fingerprint import evenly_spaced
from ..fields import attributes_of, fill
from ..keys import fold_in, normal, seed_key
from ..latents import Decode, Encode, Shape, from_uint8
from ..networks.autoencoder import AutoencoderKL
from ..runtime import multihost
from ..runtime.console import safe_output
from ..runtime.cpu import compiler_options
from ..runtime.devices import AXIS, abstract, data_mesh, put, replicated, to_host
from ..runtime.files import as_path
from ..runtime.signals import Interrupt, stopped
from ..shapes import Array, Keys, Params
from .checks import check_batch_size, check_processes
from .monitor import Monitor
from .optimizers import apply_gradients, learning_rate, make_optimizer
from .prepare import inputs_of
from .runs import locked, open_run, record_environment

NAME = "diffusion_distillation.networks.autoencoder:AutoencoderKL"  # of the network, for config.model.name
KL_WEIGHT = 1e-3
NUM_MEASURED = 2000  # images
SET_BY_DATA = ("image_channels", "dtype", "parent", "name")  # attributes that follow from other fields and the images
Metrics = dict[str, Array]


class AutoencoderState(NamedTuple):
    """The state of a training.

    Attributes:
      step: updates done.
      params: of the network.
      opt_state: of the optimizer.
    """

    step: Array
    params: Params
    opt_state: Any


def make_autoencoder(model: Any, image_shape: Shape) -> tuple[AutoencoderKL, float]:
    """Make the network that a config describes.

    Args:
      model: the `model` section of a resolved config. `args` has the attributes of `AutoencoderKL`, and `kl_weight`.
      image_shape: (height, width, channels).

    Returns:
      The network and the weight of the KL.

    Raises:
      InputError: if an option is unknown or cannot work.
    """
    table = attributes_of(AutoencoderKL, omit=SET_BY_DATA) | {"kl_weight": KL_WEIGHT}
    args = fill(table, model.args.to_dict(), "model.args.")
    kl_weight = args.pop("kl_weight")
    network = AutoencoderKL(image_channels=image_shape[-1], dtype=jnp.dtype(model.dtype), **args)
    network.validate()
    return network, kl_weight


def autoencoder_loss(
    network: AutoencoderKL,
    params: Params,
    images: Float[Array, "batch height width channels"],
    keys: Keys,
    kl_weight: float,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of a batch: L1 + kl_weight * KL, each per value of an image.

    Args:
      network: the network.
      params: its parameters.
      images: in [-1, 1].
      keys: one per image, for the noise of its latents.
      kl_weight: weight of the KL.

    Returns:
      The loss, and its parts `l1` and `kl`.
    """
    mean, std = network.apply({"params": params}, images, method="encode")
    decoded = network.apply({"params": params}, mean + std * normal(keys, mean), method="decode")
    l1 = jnp.abs(decoded - images).mean()
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * jnp.log(std)).sum() / images.size
    return l1 + kl_weight * kl, {"l1": l1, "kl": kl}


def make_update(
    train: Any, network: AutoencoderKL, kl_weight: float
) -> Callable[[AutoencoderState, Keys, Array], tuple[AutoencoderState, Metrics]]:
    """Return `update(state, key, images) -> (state, metrics)`, of uint8 images.

    The noise of an image depends on the key, the step and its position in the batch.
    """
    optimizer = make_optimizer(train)
    learning_rate_at = learning_rate(train)

    def update(state: AutoencoderState, key: Keys, images: Array) -> tuple[AutoencoderState, Metrics]:
        step_key = fold_in(key, state.step)
        keys = jax.vmap(lambda position: jax.random.fold_in(step_key, position))(jnp.arange(len(images)))
        loss = functools.partial(autoencoder_loss, network, kl_weight=kl_weight)
        (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.params, from_uint8(images), keys)
        rate = jnp.asarray(learning_rate_at(state.step), jnp.float32)
        params, opt_state = apply_gradients(optimizer, rate, grads, state.opt_state, state.params)
        metrics = {"loss": value, **parts, "gradient_norm": optax.tree.norm(grads), "learning_rate": rate}
        return AutoencoderState(state.step + 1, params, opt_state), metrics

    return update


def train_autoencoder(config: ConfigDict, workdir: epath.PathLike, source: Source, *, change: bool = False) -> Params:
    """Train an autoencoder for `config.train.num_train_steps` updates, from the newest checkpoint if there is one.

    Args:
      config: resolved; see `make_autoencoder` for `config.model`. Of `config.train`, the fields of batch size, updates,
        optimizer, learning rate, logging and checkpoints are used.
      workdir: the run's folder.
      source: the images.
      change: continue a run that has another config or other images.

    Returns:
      The parameters, as NumPy arrays.

    Raises:
      InputError: if the config does not fit the images, the devices or the run in the folder.
      KeyboardInterrupt: after SIGINT, once the state is saved.
      SystemExit: after SIGTERM, likewise.
    """
    workdir = as_path(workdir)
    train = config.train
    network, kl_weight = make_autoencoder(config.model, source.image_shape)
    mesh = data_mesh()
    check_processes(config, source)
    check_batch_size(train, mesh)
    init = functools.partial(_init_state, train, network, source.image_shape, seed_key(config.seed))
    metadata = Metadata(config=config, image_shape=source.image_shape, num_classes=source.num_classes, num_steps=0)
    with (
        safe_output(),
        locked(workdir),
        Checkpoints(workdir, train.retain_checkpoint_every_steps) as checkpoints,
        Interrupt() as interrupt,
    ):
        open_run(workdir, config, change, inputs_of(source))
        record_environment(workdir)
        state = _restore_or_begin(checkpoints, init, mesh)
        step = int(state.step)
        multihost.print_on_main(f"{workdir}: {'resuming' if step else 'starting'} at step {step:,}")
        update = jax.jit(make_update(train, network, kl_weight), donate_argnums=0, compiler_options=compiler_options())
        key = seed_key(config.seed)
        process = jax.process_index(), jax.process_count()
        steps = range(step, train.num_train_steps)
        monitor = Monitor(workdir, train, step)
        saved_at = time.monotonic()
        for batch in read_batches(source, config.seed, steps, train.batch_size, process=process):
            # Update, and read the metrics of the update before.
            state, metrics = update(state, key, _put_rows(batch["image"], mesh))
            interrupt.nothing_to_save = False
            monitor.add(range(step, step + 1), {name: [value] for name, value in metrics.items()})
            step += 1
            monitor.look(unseen=1)

            # Save.
            overdue = multihost.is_main() and time.monotonic() - saved_at > train.checkpoint_every_secs
            stop, overdue = multihost.all_max([interrupt.received, overdue])
            if stop or overdue or step == train.num_train_steps:
                monitor.look(unseen=0)
                if monitor.health.is_good:
                    checkpoints.save(state, metadata)
                elif step == train.num_train_steps:
                    raise monitor.health.error_at_end()
                saved_at = time.monotonic()
            if stop:
                checkpoints.wait()
                raise stopped(stop)
        monitor.close()
        checkpoints.wait()
        return to_host(state.params)


def measure(encode: Encode, decode: Decode, source: Source) -> Mapping[str, float]:
    """Measure an autoencoder on up to 2,000 evenly spaced images.

    Returns:
      `psnr`, the mean over images of the peak signal-to-noise ratio of their reconstructions from the latents' mean, in
      decibels; and `std`, the standard deviation of random latents over all images, positions and channels.
    """
    psnr, first, second = [], [], []
    for examples in read_examples(source, evenly_spaced(len(source), NUM_MEASURED)):
        images = np.asarray(from_uint8(examples["image"]))
        mean, std = encode(images)
        errors = (np.clip(np.asarray(decode(mean)), -1, 1) - images) ** 2
        psnr.extend(10 * np.log10(4 / np.maximum(errors.mean(axis=(1, 2, 3)), 1e-10)))
        first.append(np.asarray(mean))
        second.append(np.asarray(mean) ** 2 + np.asarray(std) ** 2)
    mean, square = (np.concatenate(parts).mean() for parts in (first, second))
    return {"psnr": float(np.mean(psnr)), "std": float(np.sqrt(square - mean**2))}


def _init_state(train: Any, network: AutoencoderKL, image_shape: Shape, key: Keys) -> AutoencoderState:
    params = network.init(key, jnp.zeros((1, *image_shape)))["params"]
    return AutoencoderState(jnp.zeros((), jnp.int32), params, make_optimizer(train).init(params))


def _restore_or_begin(checkpoints: Checkpoints, init: Callable[[], AutoencoderState], mesh: Mesh) -> AutoencoderState:
    like = jax.eval_shape(init)
    shardings = jax.tree.map(lambda _: replicated(mesh), like)
    state = checkpoints.restore(abstract(like, shardings))
    return put(jax.jit(init, compiler_options=compiler_options())(), shardings) if state is None else state


def _put_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), rows)
