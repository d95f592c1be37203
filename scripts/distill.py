r"""Distill a teacher into a ladder of students, and write a report on them.

    diffusion_distillation distill --config=digits_distill \
        --config.distillation.teacher_checkpoint_path=runs/digits/base --workdir=runs/digits/ladder

Each student has a folder in the workdir, here steps_0032 to steps_0001. The report is report/index.html. The command
line can set every field of the config, as in --config.distillation.steps_per_iter=500. The same command resumes an
interrupted ladder. --dry_run checks config, data, teacher and devices, and prints what the run would do. --noreport
skips the report, which the command report writes later.
"""

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.evaluation.ladders import evaluators_and_reference, report_nfe
from diffusion_distillation.methods import ladder_rungs
from diffusion_distillation.report.page import write_report
from diffusion_distillation.training.ladder import run_ladder, student_folder

FLAGS = cli.RunFlags()
REPORT = flags.DEFINE_bool("report", True, "At the end, measure the teacher and all students, and write the report.")


def main() -> None:
    config = FLAGS.config(distillation=True)
    FLAGS.start(config.train.batch_size, config.model.dtype, config.train.microbatch_size)
    source = FLAGS.source(config)
    # First, since it fails if weights are missing.
    measurement = evaluators_and_reference(config, source, config.eval.num_samples) if REPORT.value else None
    if FLAGS.dry_run(config, source):
        return
    to_report = report_nfe(config, FLAGS.workdir) if measurement else 0
    run_ladder(config, FLAGS.workdir, source, report_evaluations=to_report, **FLAGS.options(config, source))
    rungs = ladder_rungs(config)
    last = student_folder(FLAGS.workdir, rungs[-1].num_steps)
    sample = cli.command("sample", checkpoint=last, out=last / "samples.png")
    following = [] if measurement else [sample, cli.command("report", workdir=FLAGS.workdir)]
    cli.saved(f"{cli.counted(len(rungs), 'student')} to {FLAGS.workdir}", *following)
    if measurement:
        write_report(config, FLAGS.workdir, *measurement)
        cli.saved(f"the report to {FLAGS.workdir / 'report' / 'index.html'}", sample)


if __name__ == "__main__":
    cli.run(main)
