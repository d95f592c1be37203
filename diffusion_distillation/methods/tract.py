"""TRACT: one student step does a whole group of teacher steps (Berthelot et al. 2023, arXiv 2303.04248).

The teacher takes the first step of the group. An average of the student, the self-teacher, takes the rest in one step.
A target costs 2 network evaluations however long the group is, so two rungs lead from 1024 steps to 1.
"""

from typing import Any

from ..distillation import two_stage_target
from ..errors import InputError
from ..schedules import Schedule
from .method import Method, weighted_error
from .rungs import descending_rungs, group_times, teacher_solver


def make(config: Any, schedule: Schedule, *, self_teacher_decay: float = 0.5) -> Method:
    """Make the method, for the rungs of distillation.rungs. The paper's two phases are rungs=(1024, 32, 1).

    The paper's loss weight max(SNR, 1) is model.mean_loss_weight_type='snr_trunc'.

    Args:
      config: the config of the ladder or of one of its students, resolved.
      schedule: the training schedule.
      self_teacher_decay: decay of the self-teacher, in [0, 1). The EMA that generates samples and teaches the next
        student is slower: its decay is train.ema_decay.

    Raises:
      InputError: for a decay outside its range, or a multistep distillation.teacher_step.
    """
    if not 0 <= self_teacher_decay < 1:
        raise InputError(f"args.self_teacher_decay={self_teacher_decay} must be at least 0 and below 1.")
    rungs = descending_rungs(config.distillation)
    teacher = teacher_solver(config.distillation, rungs, single_steps=True)

    def times(keys, update, rung):
        return group_times(keys, rung.teacher_num_steps, rung.num_steps, rung, schedule)

    def target(denoisers, x, eps, z, times):
        self_teacher, solver = denoisers.average, teacher.of(times.rung)
        return two_stage_target(
            denoisers.teacher, self_teacher, z, times.t, times.dt1, times.dt2, schedule, solver=solver
        )

    return Method(
        times,
        target,
        weighted_error(config, schedule),
        target_calls=lambda rung: 1 + teacher.evaluations(rung),
        teacher_calls=teacher.evaluations,
        average_decay=self_teacher_decay,
    )
