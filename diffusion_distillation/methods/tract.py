"""TRACT: a step of the student does a whole group of its teacher's (Berthelot et al. 2023, arXiv 2303.04248).

One step is the teacher's, the rest of the group is done by an average of the student. So the groups may be long, and
few rungs lead from a thousand steps to one.
"""

from typing import Any

from ..distillation import two_stage_target
from ..losses import training_loss
from ..schedules import Schedule
from .method import Method
from .rungs import group_times, ladder_rungs, teacher_displacement


def make(config: Any, schedule: Schedule) -> Method:
    """The rungs of distillation.rungs, as (1024, 32, 1), the paper's two phases.

    The target reads the average of decay distillation.tract.self_teacher_decay; the one that is sampled and handed on
    is that of train.ema_decay, which is slow. The paper's weight max(SNR, 1) is mean_loss_weight_type='snr_trunc'.
    """
    rungs = ladder_rungs(config.distillation)
    displacement = teacher_displacement(config.distillation, rungs)

    def times(keys, update, rung):
        return group_times(keys, rung.teacher_num_steps, rung.num_steps, rung)

    def target(denoisers, x, eps, z, times):
        first, second = denoisers.teacher, denoisers.average
        beside = displacement and (displacement(times.rung), None)
        return two_stage_target(first, second, z, times.t, times.first, times.rest, schedule, displacement=beside)

    def loss(prediction, target, times):
        return training_loss(prediction, target, config.model.mean_loss_weight_type)

    average_decay = config.distillation.tract.self_teacher_decay
    return Method(times, target, loss, rungs, target_calls=lambda rung: 2, average_decay=average_decay)
