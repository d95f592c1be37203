"""The teachers of a ladder: the model that its first student learns from, and each student for the next.

A teacher may be of another kind than its students. It keeps its own network, output and time input, and students ask
for its predictions at their own log-SNRs.
"""

import dataclasses
import logging

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ..checkpoints import Metadata, abstract_params, load, warn_if_unfinished
from ..data import Source
from ..errors import InputError
from ..methods import Rung, ladder_rungs
from ..networks.model import Model, check_mean_type, make_model, train_schedule
from ..runtime import multihost
from ..runtime.multihost import print_on_main
from ..shapes import Params
from .checks import (
    SCHEDULE,
    TRAINING_ARGS,
    architecture_differences,
    check_processes,
    data_differences,
    describe_model,
    in_words,
    meaning_differences,
    refuse,
    unequal,
)
from .prepare import LoadModel, read_model
from .step import Teacher, trains_embedding_only

IN_TEACHER = "in the teacher"
NOISIER = 2.0  # log-SNR by which students' noisiest images may be below the teacher's without a warning


def load_teacher(config: ConfigDict, source: Source, load_model: LoadModel = load) -> Teacher:
    """Load the teacher of a ladder's first student and check that the student can learn from it.

    Nothing is written or compiled. Warnings and lines for the user say what the student cannot start from.

    Args:
      config: of the ladder, resolved.
      source: the training images.
      load_model: returns the parameters and the metadata at `distillation.teacher_checkpoint_path`.

    Raises:
      InputError: if the processes disagree, or for the reasons of `check_teacher`.
    """
    check_processes(config, source)
    path = config.distillation.teacher_checkpoint_path
    params, metadata = read_model(load_model, path, config)
    [first, *_] = ladder_rungs(config)
    student = describe_model(config, source, int(first.num_steps))
    metadata = with_autoencoder(metadata, student)
    check_teacher(first, metadata, student)
    if multihost.is_main():
        _warn(metadata, student)
        _print_start(params, metadata, student)
    return Teacher(
        params,
        first,
        model=_teaching_model(metadata, config),
        guidance=config.distillation.teacher_guidance,
        guidance_interval=config.distillation.teacher_guidance_interval,
        dtype=_dtype(config),
        starts_student=not architecture_differences(metadata, student),
    )


def with_autoencoder(teacher: Metadata, student: Metadata) -> Metadata:
    """Return the metadata of a teacher, which may be a file of weights that does not name its autoencoder.

    If it works with arrays of the shape of the student's latents, they are taken for those latents, with a warning.
    """
    if student.autoencoder is None or teacher.autoencoder is not None or teacher.shape != student.shape:
        return teacher
    path = student.config.distillation.teacher_checkpoint_path
    logging.warning(
        "The teacher %s names no autoencoder. Make sure that it is %s.", path, student.autoencoder.describe()
    )
    return dataclasses.replace(
        teacher,
        image_shape=student.image_shape,
        autoencoder=student.autoencoder,
        autoencoder_path=student.autoencoder_path,
    )


def student_as_teacher(params: Params, metadata: Metadata, config: ConfigDict, rung: Rung) -> Teacher:
    """A student as the teacher of the next one. It has learned how its own teacher was guided.

    Args:
      params: the student's sampling parameters.
      metadata: the student's metadata.
      config: of the ladder, resolved.
      rung: the next student's rung.
    """
    return Teacher(params, rung, model=_teaching_model(metadata, config), dtype=_dtype(config))


def check_teacher(first: Rung, teacher: Metadata, student: Metadata) -> None:
    """Raise an InputError that names the reason if a student cannot learn from a teacher.

    Args:
      first: the student's rung.
      teacher: the teacher's metadata.
      student: the student's metadata.
    """
    config = student.config
    path = config.distillation.teacher_checkpoint_path
    refuse(f"No student can learn from the teacher {path!r}", IN_TEACHER, data_differences(teacher, student))
    if teacher.config.model.mean_type == "consistency":
        raise InputError(
            f"The teacher {path!r} is a consistency model. It predicts where a trajectory ends, so its DDIM steps "
            "follow no trajectory. Distill a diffusion model, such as the one that it was made from."
        )
    check_mean_type(
        teacher.config.model.mean_type,
        train_schedule(config.model),
        f"The teacher {path!r}",
        "config.model.train_logsnr_schedule",
    )
    _check_steps(first, teacher, student)
    _check_guidance(teacher, student)
    different = {**architecture_differences(teacher, student), **meaning_differences(teacher, student)}
    if trains_embedding_only(config):
        refuse("config.distillation.only_finetune_temb=True keeps the teacher's other layers", IN_TEACHER, different)


def _check_steps(first: Rung, teacher: Metadata, student: Metadata) -> None:
    """Check a teacher that was trained for one number of sampling steps."""
    config = student.config
    path = config.distillation.teacher_checkpoint_path
    trained_for = teacher.num_steps or teacher.config.model.train_num_steps
    if not trained_for:
        return
    if trained_for != first.teacher_num_steps:
        field = "rungs[0]" if config.distillation.rungs else "start_num_steps"
        raise InputError(
            f"The teacher {path!r} was trained for {trained_for} sampling steps: set "
            f"config.distillation.{field}={trained_for} (it is {first.teacher_num_steps})."
        )
    schedules = {SCHEDULE: (train_schedule(teacher.config.model), train_schedule(config.model))}
    refuse(
        f"The teacher {path!r} was trained for {trained_for} sampling steps, at times of its own noise schedule",
        IN_TEACHER,
        unequal(schedules),
    )


def _check_guidance(teacher: Metadata, student: Metadata) -> None:
    """Check that the teacher can be guided as the student's config asks."""
    distillation = student.config.distillation
    path = distillation.teacher_checkpoint_path
    weight = distillation.teacher_guidance
    taken = teacher.config.model.args.get("guidance_range")
    wanted = student.config.model.args.get("guidance_range")
    if taken is None:
        if (weight is not None or wanted is not None) and not teacher.config.train.label_dropout:
            needs = "config.distillation.teacher_guidance" if wanted is None else "config.model.args.guidance_range"
            raise InputError(
                f"The teacher {path!r} cannot be guided, which {needs}={weight if wanted is None else wanted} needs: "
                "it was trained without label dropout. Train a teacher with config.train.label_dropout=0.1."
            )
        there, here = (metadata.config.model.guidance_channels for metadata in (teacher, student))
        if (weight is not None or wanted is not None) and here not in (None, there):
            raise InputError(
                f"The teacher {path!r} is guided with its own model.guidance_channels={there}; "
                f"config.model.guidance_channels={here} would have no effect. Set it to {there}."
            )
        return
    low, high = taken
    if wanted is not None and tuple(wanted) != tuple(taken):
        raise InputError(
            f"The teacher {path!r} takes guidance weights from {low} to {high}: set "
            f"config.model.args.guidance_range={tuple(taken)} (it is {tuple(wanted)})."
        )
    if wanted is None and (weight is None or not low <= weight <= high):
        raise InputError(
            f"The teacher {path!r} takes guidance weights from {low} to {high}: set "
            f"config.model.args.guidance_range={tuple(taken)} for students that take them too, or "
            f"config.distillation.teacher_guidance to one of them (it is {weight})."
        )
    if distillation.teacher_guidance_interval is not None and low > 0:
        raise InputError(
            f"config.distillation.teacher_guidance_interval={distillation.teacher_guidance_interval} needs a teacher "
            f"that takes the weight 0; {path!r} takes weights from {low} to {high}. Set it to None."
        )


def _warn(teacher: Metadata, student: Metadata) -> None:
    """Warn of what is allowed but makes a poor student."""
    path = student.config.distillation.teacher_checkpoint_path
    warn_if_unfinished(path, teacher)
    theirs, ours = (float(train_schedule(metadata.config.model)(1.0)) for metadata in (teacher, student))
    if ours < theirs - NOISIER:
        logging.warning(
            "Students start from noisier images than the teacher %s was trained on: the log-SNR at t = 1 is %.1f here "
            "and %.1f in the teacher. Choose a schedule that ends there.",
            path,
            ours,
            theirs,
        )


def _print_start(params: Params, teacher: Metadata, student: Metadata) -> None:
    """Say what students of another kind start from."""
    path = student.config.distillation.teacher_checkpoint_path
    if different := architecture_differences(teacher, student):
        logging.warning(
            "The first student starts from random parameters, as the teacher %s has another network: %s.",
            path,
            in_words(different, IN_TEACHER),
        )
    elif different := meaning_differences(teacher, student):
        there, here = (
            {"/".join(name): leaf.shape for name, leaf in flatten_dict(tree).items()}
            for tree in (params, abstract_params(student))
        )
        new = [name for name, shape in here.items() if there.get(name) != shape]
        named = ", ".join(new[:4]) + (f" and {len(new) - 4} more" if len(new) > 4 else "")
        print_on_main(
            f"The first student starts from the parameters of {path}{f', except for {named}' * bool(new)}. "
            f"{in_words(different, IN_TEACHER)}: its first updates relearn the output."
        )


def _teaching_model(teacher: Metadata, config: ConfigDict) -> Model | None:
    """A teacher's model as the training step of a ladder evaluates it; None if it is the students'."""
    of_teacher = teacher.config.model.copy_and_resolve_references()
    with of_teacher.unlocked():
        for name in TRAINING_ARGS:  # they do not matter to a teacher, but would make it another model
            if name in of_teacher.args and name in config.model.args:
                of_teacher.args[name] = config.model.args[name]
        of_teacher.dtype = _dtype(config) or of_teacher.dtype
    model, of_students = (
        make_model(section, teacher.shape, teacher.num_classes) for section in (of_teacher, config.model)
    )
    return None if model == of_students else model


def _dtype(config: ConfigDict) -> str | None:
    """The type of a teacher's parameters and activations; None for that of its training."""
    dtype = config.distillation.teacher_dtype
    return None if dtype == "float32" else dtype
