"""Train a base model.

    diffusion_distillation train --config=digits_base --workdir=runs/digits/base

The command line can set every field of the config, as in --config.train.num_train_steps=5000. The same command resumes
an interrupted run. --dry_run checks config, data and devices, and prints what the run would do.
"""

from diffusion_distillation import cli
from diffusion_distillation.training.loop import train

FLAGS = cli.RunFlags()


def main() -> None:
    config = FLAGS.config(distillation=False)
    FLAGS.start(config.train.batch_size, config.model.dtype, config.train.microbatch_size)
    source = FLAGS.source(config)
    if FLAGS.dry_run(config, source):
        return
    train(config, FLAGS.workdir, source, **FLAGS.options(config, source))
    sample = cli.command("sample", checkpoint=FLAGS.workdir, out=FLAGS.workdir / "samples.png")
    updates = cli.counted(config.train.num_train_steps, "update")
    distill = cli.distill_commands(cli.config_arguments(), FLAGS.workdir)
    cli.saved(f"a model trained for {updates} to {FLAGS.workdir}", sample, *distill)


if __name__ == "__main__":
    cli.run(main)
