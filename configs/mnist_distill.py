r"""Stage 2 of MNIST: the student of `mnist_student.py`, from 64 sampling steps to 8, then to 4, 2 and 1.

1,213,377 parameters; 1,200 updates. Two CPU cores take 15 minutes, and 9 for the report. With guidance weight 0.5 and
2,000 samples, against all images:

    sampling steps                8       4       2       1       teacher, 64    teacher, 1
    Fréchet distance (pixels)     1.95    2.01    2.24    2.35    1.75           21.4
    recall                        0.72    0.70    0.67    0.63    0.74           0

A classifier recognizes the requested class in at least 99.5% of the students' samples.

    diffusion_distillation distill --config=mnist_distill \
        --config.distillation.teacher_checkpoint_path=runs/mnist/student/steps_0064 --workdir=runs/mnist/ladder
    diffusion_distillation sample --checkpoint=runs/mnist/ladder/steps_0001 --guidance=1 --out=mnist.png
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("mnist_student.py")))
    config.distillation.rungs = (64, 8, 4, 2, 1)
    config.distillation.steps_per_iter = 200
    config.distillation.stages = {"2": {"updates_factor": 2.0}, "1": {"updates_factor": 2.0}}
    config.train.learning_rate = 5e-4
    config.train.log_loss_every_steps = 50
    config.eval.teacher_num_steps = (64, 8, 4, 2, 1)
    config.eval.ancestral_num_steps = ()
    return config
