"""What several methods share: the rungs of a ladder, training times on a grid in groups, and the teacher's solver."""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from ..errors import InputError
from ..losses import discrete_steps
from ..sampling import SOLVERS, Solver, addim_velocity
from ..schedules import Schedule
from ..shapes import Array, Count, at_least_float32
from .method import Rung


def descending_rungs(distillation: Any) -> tuple[Rung, ...]:
    """Return the rungs of a ladder: those that `rungs` lists, or halvings from start_num_steps to end_num_steps.

    Args:
      distillation: the `distillation` section of a config.

    Raises:
      InputError: if the section sets both `rungs` and start_num_steps, or neither; see also `listed_rungs` and
        `halvings`.
    """
    rungs = tuple(distillation.rungs)
    start = distillation.start_num_steps
    if rungs and start is not None:
        raise InputError(
            f"rungs={rungs} is the whole ladder: unset start_num_steps={start}, "
            "with --config.distillation.start_num_steps=None."
        )
    if start is None and not rungs:
        raise InputError("start_num_steps is missing: set it to the teacher's number of sampling steps, or set rungs.")
    return listed_rungs(rungs) if rungs else halvings(start, distillation.end_num_steps)


def listed_rungs(num_steps: tuple[Any, ...]) -> tuple[Rung, ...]:
    """Return the rungs from a teacher with num_steps[0] sampling steps to students with num_steps[1], num_steps[2], ...

    Args:
      num_steps: at least two numbers of sampling steps, each a multiple of the next.

    Raises:
      InputError: for other numbers.

    >>> listed_rungs((1024, 32, 1))
    (Rung(teacher_num_steps=1024, num_steps=32), Rung(teacher_num_steps=32, num_steps=1))
    """
    are_integers = all(isinstance(number, int) and number >= 1 for number in num_steps)
    rungs = tuple(Rung(*pair) for pair in itertools.pairwise(num_steps))
    if not are_integers or not rungs or any(teacher <= student or teacher % student for teacher, student in rungs):
        raise InputError(
            f"rungs={num_steps} must be the sampling steps of the teacher and of each student, every number a multiple "
            "of the next, such as (1024, 32, 1)."
        )
    return rungs


def halvings(start_num_steps: int, end_num_steps: int) -> tuple[Rung, ...]:
    """Return the rungs from start_num_steps sampling steps to end_num_steps, each with half the steps of the last.

    Args:
      start_num_steps: sampling steps of the first teacher, end_num_steps times 2, 4, 8, ...
      end_num_steps: sampling steps of the last student, at least 1.

    Raises:
      InputError: for other numbers.

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
    """Training times for `two_stage_target`: one step of a grid, then one to the end of a group of grid steps.

    Attributes:
      t: the time of each example, where the first step starts.
      dt1: length of the first step.
      dt2: length of the second step; 0 if the first step ends the group, 1 if the group ends at t = 0.
      rung: the student's rung.
    """

    t: Float[Array, "batch"]
    dt1: Float[Array, "batch"]
    dt2: Float[Array, "batch"]
    rung: Rung


def group_times(keys: Key[Array, "batch"], grid: Count, groups: Count, rung: Rung, schedule: Schedule) -> GroupTimes:
    """Sample training times, uniform on a grid that is divided into groups of equal size.

    Args:
      keys: one key per example.
      grid: steps of the grid, a multiple of `groups`; may be traced.
      groups: number of groups; may be traced.
      rung: the student's rung, for the result.
      schedule: the training schedule.

    >>> import jax
    >>> from diffusion_distillation.schedules import get_logsnr_schedule
    >>> keys, schedule = jax.random.split(jax.random.key(0), 100), get_logsnr_schedule("cosine")
    >>> times = group_times(keys, 8, 2, Rung(8, 2), schedule)
    >>> sorted({(float(t), float(dt2)) for t, dt2 in zip(times.t, times.dt2)})
    [(0.125, 0.0), (0.25, 1.0), (0.375, 1.0), (0.5, 1.0), (0.625, 0.0), (0.75, 0.125), (0.875, 0.25), (1.0, 0.375)]
    """
    grid = jnp.asarray(grid, jnp.int32)
    size = grid // jnp.asarray(groups, jnp.int32)  # grid steps per group
    i = discrete_steps(keys, grid)
    remaining = i % size  # grid steps from the end of the first step to the end of the group
    dt2 = jnp.where((i < size) & (remaining > 0), 1.0, remaining / grid)
    t = schedule.grid_time(i, grid)
    return GroupTimes(t, jnp.ones_like(t) / grid.astype(t.dtype), dt2, rung)


class TeacherSolver(NamedTuple):
    """The solver of a ladder's teachers: one of `sampling.SOLVERS` in the first rungs, DDIM in the others.

    Attributes:
      solver: the solver in the first rungs.
      last: sampling steps of the student of the last of these rungs.
    """

    solver: Solver
    last: float

    def of(self, rung: Rung) -> Solver:
        """Return the solver of a rung. The rung may be traced, so one program serves all rungs."""
        if self.solver is SOLVERS["ddim"]:
            return self.solver

        def velocity(prediction, denoise, z, memory, **step):
            def by_solver():
                v, new_memory = self.solver.velocity(prediction, denoise, z, memory, **step)
                return v.astype(dtype), new_memory

            dtype = at_least_float32(z.dtype)
            is_first = jnp.asarray(rung.num_steps >= self.last)
            return jax.lax.cond(is_first, by_solver, lambda: (prediction.v.astype(dtype), memory))

        return dataclasses.replace(self.solver, velocity=velocity)

    def evaluations(self, rung: Rung) -> int:
        """Return the network evaluations of a teacher step."""
        return self.solver.evaluations if rung.num_steps >= self.last else 1


def teacher_solver(distillation: Any, rungs: tuple[Rung, ...], *, single_steps: bool = False) -> TeacherSolver:
    """Make the solver distillation.teacher_step, for the first distillation.teacher_step_rungs rungs.

    The teachers of later rungs are students. What a student predicts for its own DDIM step is the v of this step, not
    the slope of an ODE, so a solver of higher order has nothing to correct. Nor is it a mean, which aDDIM needs.

    Args:
      distillation: the `distillation` section of a config.
      rungs: the rungs of its ladder.
      single_steps: whether the method takes one teacher step from each z_t; default False.

    Raises:
      InputError: for a multistep solver with `single_steps`.

    >>> import types
    >>> section = types.SimpleNamespace(method="progressive", teacher_step="heun", teacher_step_rungs=1)
    >>> solver = teacher_solver(section, (Rung(64, 8), Rung(8, 1)))
    >>> solver.evaluations(Rung(64, 8)), solver.evaluations(Rung(8, 1))
    (2, 1)
    """
    name = distillation.teacher_step
    solver = SOLVERS[name]
    if name == "addim":
        velocity = functools.partial(addim_velocity, variance=distillation.addim_variance)
        solver = dataclasses.replace(solver, velocity=velocity)
    if single_steps and solver.is_multistep:
        allowed = [name for name, solver in SOLVERS.items() if not solver.is_multistep]
        raise InputError(
            f"teacher_step={name!r} needs the teacher's previous step, but method={distillation.method!r} takes single "
            f"teacher steps. Set teacher_step to one of {allowed}."
        )
    count = min(distillation.teacher_step_rungs, len(rungs))
    return TeacherSolver(solver, rungs[count - 1].num_steps if count else math.inf)
