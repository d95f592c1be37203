"""What the ladders of several methods share: their rungs, their grids in groups, and how their teachers step."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Key

from ..distillation import Displacement
from ..errors import InputError
from ..losses import discrete_steps
from ..sampling import addim_displacement
from ..schedules import Schedule
from ..shapes import Array, Count
from .method import Rung


def descending_rungs(distillation: Any) -> tuple[Rung, ...]:
    """The rungs that a config's `distillation` section describes: `rungs`, or halvings from start_num_steps down.

    Raises:
      InputError: if the section has both or neither; and as `halvings` and `listed_rungs`.
    """
    rungs = tuple(distillation.rungs)
    start = distillation.start_num_steps
    if rungs and start is not None:
        raise InputError(f"rungs={rungs} lists all steps of the ladder: unset start_num_steps={start} (None).")
    if start is None and not rungs:
        raise InputError("start_num_steps is missing: set it to the teacher's number of sampling steps, or set rungs.")
    return listed_rungs(rungs) if rungs else halvings(start, distillation.end_num_steps)


def listed_rungs(num_steps: tuple[Any, ...]) -> tuple[Rung, ...]:
    """The rungs from a teacher with num_steps[0] sampling steps to students with the following ones.

    Raises:
      InputError: if there are not two numbers or more, each a multiple of the next.

    >>> listed_rungs((1024, 32, 1))
    (Rung(teacher_num_steps=1024, num_steps=32), Rung(teacher_num_steps=32, num_steps=1))
    """
    integers = all(isinstance(number, int) and number >= 1 for number in num_steps)
    rungs = tuple(Rung(*pair) for pair in itertools.pairwise(num_steps))
    if not integers or not rungs or any(above <= below or above % below for above, below in rungs):
        raise InputError(
            f"rungs={num_steps} must be the teacher's number of sampling steps and then the students', each a multiple "
            "of the next, such as (1024, 32, 1)."
        )
    return rungs


def halvings(start_num_steps: int, end_num_steps: int) -> tuple[Rung, ...]:
    """The rungs from a teacher with start_num_steps sampling steps to a student with end_num_steps, each half the last.

    Raises:
      InputError: if start_num_steps is not end_num_steps times a power of two, two at least.

    >>> [rung.num_steps for rung in halvings(16, 2)]
    [8, 4, 2]
    """
    rungs = []
    num_steps = start_num_steps
    while num_steps > end_num_steps >= 1 and num_steps % 2 == 0:
        rungs.append(Rung(num_steps, num_steps // 2))
        num_steps //= 2
    if not rungs or num_steps != end_num_steps:
        raise InputError(
            f"start_num_steps={start_num_steps} must be end_num_steps={end_num_steps} times a power of two "
            "(2, 4, 8, ...), so that every student takes half the steps of its teacher."
        )
    return tuple(rungs)


class GroupTimes(NamedTuple):
    """Times of a grid in groups.

    Attributes:
      t: the time of each example.
      first: the length of a step of the grid.
      rest: what is then left down to the start of the group; 0 for nothing, 1 where that is t = 0.
      rung: the student's.
    """

    t: Float[Array, "batch"]
    first: Float[Array, "batch"]
    rest: Float[Array, "batch"]
    rung: Rung


def group_times(keys: Key[Array, "batch"], grid: Count, groups: Count, rung: Rung, schedule: Schedule) -> GroupTimes:
    """Uniform on a grid of `grid` steps in `groups` groups, of which it is a multiple; both may be traced."""
    grid, groups = jnp.asarray(grid, jnp.int32), jnp.asarray(groups, jnp.int32)
    i, size = discrete_steps(keys, grid), grid // groups
    place = i % size
    rest = jnp.where((i < size) & (place > 0), 1.0, place / grid)
    t = schedule.grid_time(i, grid)
    return GroupTimes(t, jnp.ones_like(t) / grid.astype(t.dtype), rest, rung)


def teacher_displacement(distillation: Any, rungs: tuple[Rung, ...]) -> Callable[[Rung], Displacement] | None:
    """How far beside a step of DDIM the teacher of a rung steps; None where no teacher does.

    By distillation.teacher_step='addim' the teachers of the first `addim_rungs` rungs do (Heek et al. 2024, algorithm
    3): it is for teachers that predict a mean, and students do so less and less.
    """
    if distillation.teacher_step == "ddim" or distillation.addim_rungs == 0:
        return None
    last = rungs[min(distillation.addim_rungs, len(rungs)) - 1].num_steps

    def of_rung(rung):
        adjusted = jnp.asarray(rung.num_steps >= last, jnp.float32)  # traced: one program serves all rungs

        def displacement(prediction, phi, d):
            return adjusted * addim_displacement(prediction, phi, d, distillation.addim_variance)

        return displacement

    return of_rung
