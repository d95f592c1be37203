"""Whether a model can start from another one's parameters."""

from ..checkpoints import Metadata
from ..errors import InputError
from ..networks.model import train_schedule


def check_same_model(start: str, where: str, theirs: Metadata, ours: Metadata) -> None:
    """Refuse parameters that have the right shapes but another meaning.

    Args:
      start: what cannot start from what, for the message.
      where: where the given parameters are, for the message, such as 'in the teacher'.
      theirs: the metadata of the given parameters.
      ours: the metadata of the model that is to start from them.

    Raises:
      InputError: if the networks, their outputs, the noise schedules, the images or the classes differ; it names each
        difference.
    """
    there, here = theirs.config.model, ours.config.model
    described = {
        f"config.model.args.{name}": (there.args.get(name), here.args.get(name))
        for name in {**there.args, **here.args}
        if name not in ("dropout", "remat")  # they do not shape parameters, and students often have others
    }
    if there.args.get("guidance_range") is None:  # a student may be the first model that takes a guidance weight
        described.pop("config.model.args.guidance_range", None)
    described |= {f"config.model.{name}": (there[name], here[name]) for name in ("name", "mean_type")}
    described |= {
        "the noise schedule (config.model.train_logsnr_schedule)": (train_schedule(there), train_schedule(here)),
        "the image shape": (tuple(theirs.image_shape), tuple(ours.image_shape)),
        "the number of classes": (theirs.num_classes, ours.num_classes),
    }
    differences = [f"{name} is {a!r} {where} and {b!r} here" for name, (a, b) in described.items() if a != b]
    if differences:
        raise InputError(f"{start}: {'; '.join(differences)}.")
