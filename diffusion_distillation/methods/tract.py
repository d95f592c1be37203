"""TRACT: a step of the student does a whole group of its teacher's (Berthelot et al. 2023, arXiv 2303.04248).

One step is the teacher's, the rest of the group is done by an average of the student. So the groups may be long, and
few rungs lead from a thousand steps to one.
"""

from typing import Any

from ..distillation import two_stage_target
from ..errors import InputError
from ..losses import training_loss
from ..schedules import Schedule
from .method import Method
from .rungs import descending_rungs, group_times, teacher_displacement


def make(config: Any, schedule: Schedule, *, self_teacher_decay: float = 0.5) -> Method:
    """TRACT, for the rungs of distillation.rungs; the paper's two phases are (1024, 32, 1).

    The paper's loss weight max(SNR, 1) is model.mean_loss_weight_type='snr_trunc'.

    Args:
      config: of the ladder or of one of its students.
      schedule: the training schedule.
      self_teacher_decay: decay of the student's average that the target reads, in [0, 1). The average that is sampled
        and that teaches the next student is a slower one, of decay train.ema_decay.

    Raises:
      InputError: for a decay outside its range.
    """
    if not 0 <= self_teacher_decay < 1:
        raise InputError(f"args.self_teacher_decay={self_teacher_decay} must be at least 0 and below 1.")
    rungs = descending_rungs(config.distillation)
    displacement = teacher_displacement(config.distillation, rungs)

    def times(keys, update, rung):
        return group_times(keys, rung.teacher_num_steps, rung.num_steps, rung, schedule)

    def target(denoisers, x, eps, z, times):
        first, second = denoisers.teacher, denoisers.average
        beside = displacement and (displacement(times.rung), None)
        return two_stage_target(first, second, z, times.t, times.first, times.rest, schedule, displacement=beside)

    def loss(prediction, target, times):
        return training_loss(prediction, target, config.model.mean_loss_weight_type, schedule(times.t))

    return Method(times, target, loss, target_calls=lambda rung: 2, average_decay=self_teacher_decay)
