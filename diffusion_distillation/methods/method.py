"""The parts of a method: the training times, the target, the loss, and the rungs of its ladder."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jaxtyping import Float, Key

from ..diffusion import Denoiser, Prediction
from ..errors import InputError
from ..losses import training_loss
from ..schedules import Schedule
from ..shapes import Array, Count, DataArray


class Rung(NamedTuple):
    """One rung of a ladder: a teacher, and the student that it trains.

    Attributes:
      teacher_num_steps: sampling steps of the teacher; for methods that train on a grid of times, steps of the grid.
      num_steps: sampling steps of the student.
    """

    teacher_num_steps: Count
    num_steps: Count


class Times(NamedTuple):
    """The training times of a batch. A method that needs more than `t` defines a NamedTuple with more fields.

    Attributes:
      t: the time of each example, in (0, 1].
    """

    t: Float[Array, "batch"]


class Denoisers(NamedTuple):
    """The networks that a target can evaluate, conditioned on the labels and guidance weights of the examples.

    No gradient flows through them. A network that is not evaluated costs nothing.

    Attributes:
      teacher: the teacher, without dropout; None in base training. If the student takes a guidance weight w and the
        teacher does not, or with w = distillation.teacher_guidance, the teacher is guided: (1 + w) times its
        conditional prediction minus w times its unconditional prediction.
      student: the current student, with the dropout mask of the prediction that the target is for.
      average: the method's average of the student, without dropout; None unless the method has an `average_decay`.
    """

    teacher: Denoiser | None
    student: Denoiser
    average: Denoiser | None


class Method(NamedTuple):
    """A training objective as pure functions. The training step samples x and eps, and computes z at the times.

    Attributes:
      times: `times(keys, update, rung)` samples a NamedTuple with `t`, and with all else that `target` and `loss` need.
        `keys` has one key per example, `update` is the number of updates done, and `rung` is the student's (None in
        base training). `update` and the numbers of `rung` are traced: one compiled program serves a whole ladder.
      target: `target(denoisers, x, eps, z, times)` returns what the student should predict for z at t.
      loss: `loss(prediction, target, times)` returns the loss of each example, `[batch]`.
      rungs: the rungs of the ladder; each student is the next student's teacher. Empty in base training.
      target_calls: `target_calls(rung)`, network evaluations per target. Comparisons count the cost of a method by it.
      teacher_calls: `teacher_calls(rung)`, how many of them evaluate the teacher.
      average_decay: decay of the average of the parameters that the target evaluates as `denoisers.average`, with bias
        correction. This average is separate from the EMA that generates samples. None for no average.
    """

    times: Callable[[Key[Array, "batch"], Array, Rung | None], Any]
    target: Callable[[Denoisers, DataArray, DataArray, DataArray, Any], Prediction]
    loss: Callable[[Prediction, Prediction, Any], Float[Array, "batch"]]
    rungs: tuple[Rung, ...] = ()
    target_calls: Callable[[Rung], int] = lambda rung: 0
    teacher_calls: Callable[[Rung], int] = lambda rung: 0
    average_decay: float | None = None


def with_checks(method: Method, name: str) -> Method:
    """Return a custom method whose functions check the shapes of their results.

    The checks cost nothing in a compiled step: they run when the functions are traced, as by `training.dry_run`.

    Args:
      method: any method.
      name: `distillation.method`, for messages.

    Returns:
      The method. `times` must return a `t` of shape `[batch]`, `target` a `Prediction` of arrays of z's shape, and
      `loss` an array of shape `[batch]`. Otherwise, the function raises an InputError.
    """

    def shape_of(value: Any) -> tuple[int, ...] | None:
        return getattr(value, "shape", None)

    def refuse(function: str, wanted: str, found: Any) -> NoReturn:
        shapes = jax.tree.map(np.shape, found)
        returned = f"an array of shape {shapes}" if hasattr(found, "shape") else f"{type(found).__name__}: {shapes!r}"
        raise InputError(
            f"config.distillation.method={name!r}: `{function}` must return {wanted}, not {returned:.200}."
        )

    def times(keys, update, rung):
        found = method.times(keys, update, rung)
        if shape_of(getattr(found, "t", None)) != keys.shape:
            refuse("times", f"a NamedTuple whose field t has shape {keys.shape}, one time per example", found)
        return found

    def target(denoisers, x, eps, z, times):
        found = method.target(denoisers, x, eps, z, times)
        if not isinstance(found, Prediction) or any(shape_of(part) != z.shape for part in found):
            refuse("target", f"a Prediction of arrays of z's shape, {z.shape}", found)
        return found

    def loss(prediction, target, times):
        found = method.loss(prediction, target, times)
        if shape_of(found) != times.t.shape:
            refuse("loss", f"an array of shape {times.t.shape}, one loss per example", found)
        return found

    return method._replace(times=times, target=target, loss=loss)


def weighted_error(config: Any, schedule: Schedule) -> Callable[[Prediction, Prediction, Any], Float[Array, "batch"]]:
    """Make the loss of most methods: the squared error, weighted as model.mean_loss_weight_type says.

    Args:
      config: a resolved config.
      schedule: the training schedule.
    """
    model = config.model

    def loss(prediction, target, times):
        logsnr = schedule(times.t)
        return training_loss(prediction, target, model.mean_loss_weight_type, logsnr, sigma_data=model.sigma_data)

    return loss


FORWARD_AND_BACKWARD = 3  # evaluations of the student per update: a backward pass costs as much as two forward passes


def evaluations_of_update(method: Method, rung: Rung) -> int:
    """Return the network evaluations of one update, per example.

    With a method other than 'guidance', a first teacher without an input for guidance weights is evaluated twice if its
    students have one. The second evaluation is not counted.

    >>> method = Method(times=None, target=None, loss=None, target_calls=lambda rung: 2)
    >>> evaluations_of_update(method, Rung(8, 4))
    5
    """
    return FORWARD_AND_BACKWARD + method.target_calls(rung)
