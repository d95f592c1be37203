"""What a method is: the times it trains at, its target, its loss, and the rungs of its ladder."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float, Key

from ..diffusion import Denoiser, Prediction
from ..shapes import Array, Count, DataArray


class Rung(NamedTuple):
    """A student of a ladder: what it is taught from, and what it becomes.

    Attributes:
      teacher_num_steps: sampling steps of its teacher, or of the grid that it is taught on.
      num_steps: its own sampling steps.
    """

    teacher_num_steps: Count
    num_steps: Count


class Times(NamedTuple):
    """When an example is trained, the least a method draws. A method that draws more has a NamedTuple of its own.

    Attributes:
      t: time of each example, in (0, 1].
    """

    t: Float[Array, "batch"]


class Denoisers(NamedTuple):
    """The networks that a target may ask, all under the labels, and the weights of guidance, of the examples.

    No gradient flows through them; one that is not asked costs nothing.

    Attributes:
      teacher: without dropout; None in base training. One that takes no weight of guidance, where the student does, is
        guided by it: it says (1 + w) times what it says under the label, less w times what it says without.
      student: the student as it is, with the dropout mask of the prediction that is to meet the target.
      average: the method's own average of the student, without dropout; None unless it has an `average_decay`.
    """

    teacher: Denoiser | None
    student: Denoiser
    average: Denoiser | None


class Method(NamedTuple):
    """A training objective, in pure functions. The training step draws x and eps and makes z of them.

    Attributes:
      times: `times(keys, update, rung)`, a NamedTuple that has `t` and what else the other functions read. `keys` is a
        key an example, `update` the number of updates done, `rung` the student's (None in base training); the last two
        are traced, so that one program serves a whole ladder.
      target: `target(denoisers, x, eps, z, times)`, what the student should say of z at t.
      loss: `loss(prediction, target, times)`, of each example.
      rungs: the students of a ladder, each the teacher of the next; none in base training.
      target_calls: `target_calls(rung)`, the evaluations of networks that a target takes: methods are compared by it.
      average_decay: the decay of the average that the target reads as `denoisers.average`, corrected for its short
        history in the beginning. It is not the average that samples are drawn with. None for none.
    """

    times: Callable[[Key[Array, "batch"], Array, Rung | None], Any]
    target: Callable[[Denoisers, DataArray, DataArray, DataArray, Any], Prediction]
    loss: Callable[[Prediction, Prediction, Any], Float[Array, "batch"]]
    rungs: tuple[Rung, ...] = ()
    target_calls: Callable[[Rung], int] = lambda rung: 0
    average_decay: float | None = None


UPDATE = 3  # evaluations of the student: forward and backward


def evaluations_of_update(method: Method, rung: Rung) -> int:
    """The network evaluations that an update takes for each example."""
    return UPDATE + method.target_calls(rung)
