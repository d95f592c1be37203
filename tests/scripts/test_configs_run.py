"""Every config through the real scripts: 2 updates of a teacher and 1 of a student, on stand-ins for the dataset.

The configs of CIFAR-10 run with narrow, shallow U-Nets. The others run with `Affine` of own_parts.py, which compiles in
no time, on smaller images. Batches are smaller too; all other settings are the config's.
"""

import json

import jax
import numpy as np
import pytest
from helpers.latent_models import encoded_columns
from helpers.runs import AFFINE, OWN_PARTS, ROOT, call, run_together
from PIL import Image

from diffusion_distillation import config as cfg
from diffusion_distillation.checkpoints import load

SHRUNK = [
    "--config.model.args.ch=32",
    "--config.model.args.emb_ch=32",
    "--config.model.args.num_res_blocks=0",
    "--config.model.eval_sampling_num_steps=1",
    "--config.train.batch_size=2",
]
ONE_HALVING = [
    "--config.distillation.steps_per_iter=1",
    "--config.distillation.stages={}",
    "--config.eval.num_samples=4",
    "--config.eval.metrics=('fid',)",
    "--config.eval.batch_size=4",
    "--config.eval.teacher_num_steps=(1,)",
]
TWO_LEVELS = ["--config.model.args.ch_mult=(1,1)"]
SMALL = [*AFFINE, "--config.dataset.args.image_size=8"]
IMAGES = [*SMALL, "--config.dataset.args.path={images}"]
CONFIGS = {  # test_config.py checks the networks of full size
    "digits": AFFINE,
    "digits_flow": AFFINE,
    "digits_dit": AFFINE,
    "cifar": TWO_LEVELS,
    "imagenet64": SMALL,
    "bedroom128": SMALL,
    "church128": SMALL,
    "cars64": IMAGES,
    "folder": IMAGES,
    "folder_small": IMAGES,
    "folder_latent": [*AFFINE, "--config.dataset.args.path={latents}"],
}
NUM_CLASSES = {"imagenet64": 1000, "folder_latent": 3}  # of the configs with classes
WITHOUT_LADDER = {"cifar_edm": AFFINE}


def test_every_config_is_run_by_a_test():
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    names -= {"letters_autoencoder"}  # see tests/training/test_train_autoencoder.py
    ladders = {f"{name}_{kind}" for name in CONFIGS for kind in ("base", "distill")}
    guided = {f"{name}_guided_{kind}" for name in ("digits", *GUIDED_ALIKE) for kind in KINDS}
    guided |= {f"{name}_{kind}" for name in LARGER for kind in KINDS}
    of_papers = {"cifar_tract", "cifar_consistency", "imagenet64_consistency", "imagenet64_addim"}  # see test_config.py
    bases = {f"{name}_base" for name in WITHOUT_LADDER}
    of_latents = {f"imagenet256_{name}" for name in ("dit_distill", "dit_guided_student", "sit_distill")}
    of_latents |= {f"letters_latent_{kind}" for kind in KINDS}
    of_latents |= {"dit_b2_imagenet256_base"}  # see tests/interop/test_dit_weights.py and test_config.py
    assert names == ladders | bases | {f"digits_{method}" for method in OF_DIGITS} | guided | of_papers | of_latents


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Stanford Cars in Kaggle's layout, with one text file that has the name of an image."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(12):
        part = "cars_train" if number % 2 else "cars_test"
        path = folder / part / part / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(path)
    (folder / "cars_train" / "cars_train" / "broken.jpg").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def env(stand_ins):
    return {"TFDS_DATA_DIR": str(stand_ins)}


def training_and_distilling(base, ladder, flags, end, workdir):
    """The commands for 2 updates of a base model and for one halving, to `end` sampling steps."""
    halved = distilling(ladder, [*flags, *halving(ladder, end)], workdir / "b", workdir / "l")
    return [training(base, flags, workdir / "b"), halved]


def training(base, flags, workdir):
    """The command for 2 updates of a base model."""
    return ["train", f"--config={base}", *SHRUNK, *flags, "--config.train.num_train_steps=2", f"--workdir={workdir}"]


def halving(ladder, end):
    """The flags that make one halving of a config's ladder."""
    if cfg.load(ROOT / ladder).distillation.get("rungs"):
        return [f"--config.distillation.rungs=({2 * end}, {end})"]
    return [f"--config.distillation.start_num_steps={2 * end}", f"--config.distillation.end_num_steps={end}"]


def distilling(ladder, flags, teacher, workdir):
    """The command for one update of each student."""
    given = [f"--config.distillation.teacher_checkpoint_path={teacher}", f"--workdir={workdir}"]
    ancestral = f"--config.eval.ancestral_num_steps={(1,) if 'digits_distill' in str(ladder) else ()}"
    return ["distill", f"--config={ladder}", *SHRUNK, *ONE_HALVING, ancestral, *flags, *given]


def end_of(name):
    """The number of steps of the last student."""
    return 2 if name == "cars64" else 1


OF_DIGITS = {  # the other ladders of the digits, each cut down to one student
    "addim": ["--config.distillation.rungs=(8, 2)"],
    "tract": ["--config.distillation.rungs=(8, 2)"],
    "consistency": [
        "--config.distillation.start_num_steps=8",
        "--config.distillation.end_num_steps=2",
        "--config.distillation.args.first_grid=4",
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, images, env):
    """The folder with the runs of all configs. One process makes them all, as importing libraries takes long."""
    folder, commands = tmp_path_factory.mktemp("runs"), []
    encoded_columns(folder / "latents")
    latents = folder / "latents" / "latents_True"
    for name, flags in CONFIGS.items():
        flags = [flag.format(images=images, latents=latents) for flag in flags]
        paths = f"configs/{name}_base.py", f"configs/{name}_distill.py"
        commands += training_and_distilling(*paths, flags, end_of(name), folder / name)
    for name, flags in WITHOUT_LADDER.items():
        commands.append(training(f"configs/{name}_base.py", flags, folder / name / "b"))
    commands.append(training("configs/digits_base.py", AFFINE, folder / "affine"))
    for name, flags in OF_DIGITS.items():
        commands.append(distilling(f"configs/digits_{name}.py", [*AFFINE, *flags], folder / "affine", folder / name))
    paths = write_published(folder)
    commands += training_and_distilling(*paths, AFFINE, 1, folder / "published")
    for name in FLAGS_OF_GUIDED:
        commands += guiding(name, folder / name)
    run_together(commands, env=env | OWN_PARTS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains_and_distills(name, runs):
    ladder = runs / name / "l"
    num_classes = NUM_CLASSES.get(name, 1)
    check_run(runs / name / "b", 2, num_classes)
    check_run(ladder / f"steps_{end_of(name):04d}", 1, num_classes)
    assert (ladder / "report" / "index.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_LADDER)
def test_every_config_without_a_ladder_trains(name, runs):
    check_run(runs / name / "b", 2, 1)


def check_run(workdir, updates, num_classes):
    """Check that a run has its updates, finite parameters, and one line with a finite loss."""
    params, metadata = load(workdir)
    assert (metadata.step, metadata.num_classes) == (updates, num_classes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 1 and np.isfinite(losses[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_DIGITS)
def test_every_method_of_the_digits_configs_trains_and_reports(name, runs):
    assert load(runs / name / "steps_0002")[1].step == 1
    assert (runs / name / "report" / "index.html").exists()


KINDS = ("base", "student", "distill")
GUIDED_ALIKE = ("cifar", "imagenet64")  # their networks run above
LARGER = ("mnist", "letters")


@pytest.mark.parametrize("kind", KINDS)
def test_the_configs_of_mnist_and_letters_have_the_same_settings(kind):
    mnist, letters = (cfg.load(ROOT / f"configs/{name}_{kind}.py").to_dict() for name in LARGER)
    mnist["model"]["args"]["attn_resolutions"], mnist["train"]["num_train_steps"] = (8,), 8_000
    assert (mnist.pop("dataset")["name"], letters.pop("dataset")["name"]) == ("MNIST", "letters")
    assert mnist == letters


@pytest.mark.parametrize("name", GUIDED_ALIKE)
@pytest.mark.parametrize("kind", KINDS)
def test_guided_configs_differ_from_the_others_in_guidance_alone(name, kind):
    plain = cfg.load(ROOT / f"configs/{name}_{'base' if kind == 'base' else 'distill'}.py").to_dict()
    guided = cfg.load(ROOT / f"configs/{name}_guided_{kind}.py").to_dict()
    assert guided["train"].pop("label_dropout") == (0.1 if kind == "base" else 0.0)
    assert guided["model"]["args"].pop("guidance_range") == (None if kind == "base" else (0.0, 4.0))
    assert guided["dataset"]["args"].pop("class_conditional")
    for section, field in (("train", "label_dropout"), ("model", "args"), ("dataset", "args")):
        plain[section].pop(field, None) if section == "train" else plain[section][field].pop("guidance_range", None)
    plain["dataset"]["args"].pop("class_conditional")
    assert {part: guided[part] for part in ("dataset", "model", "train")} == {
        part: plain[part] for part in ("dataset", "model", "train")
    }


FLAGS_OF_GUIDED = {
    "digits_guided": AFFINE,
    "letters": [*SMALL, "--config.dataset.args.num_images=52"],
}


def guiding(name, folder):
    """The commands that train a teacher, a guided student and its halving, and that sample and evaluate them."""
    measured = ["--config.eval.features=('classifier',)", "--config.model.eval_guidance=1.0"]
    flags = [*FLAGS_OF_GUIDED[name], *measured]
    guided = f"configs/{name}_{{}}.py".format
    first = [*flags, "--config.distillation.end_num_steps=2"]
    second = [*flags, *halving(guided("distill"), 1)]
    drawn = ["--num_samples=20", "--batch_size=20", "--guidance=3"]
    last = f"--checkpoint={folder}/l/steps_0001"
    return [
        training(guided("base"), FLAGS_OF_GUIDED[name], folder / "b"),
        distilling(guided("student"), first, folder / "b", folder / "s"),
        distilling(guided("distill"), second, folder / "s" / "steps_0002", folder / "l"),
        ["sample", f"--checkpoint={folder}/b", "--num_steps=2", *drawn, f"--out={folder}/b.npz"],
        ["sample", last, *drawn, f"--out={folder}/images/"],
        ["evaluate", last, *drawn, "--features=classifier", "--metrics=accuracy", f"--out={folder}/e.json"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS_OF_GUIDED)
def test_guided_configs_train_sample_and_evaluate(name, runs):
    folder = runs / name
    for student, updates in (("s/steps_0002", 1), ("l/steps_0001", 1)):
        params, metadata = load(folder / student)
        assert metadata.step == updates and "guidance1" in params
        report = json.loads((folder / student[0] / "report" / "evaluation.json").read_text())
        assert report["about"]["guidance"] == 1.0 and "student_ddim_" in "".join(report["metrics"])
        assert (folder / student[0] / "report" / "guidance.png").exists()
    settings = json.loads((folder / "images" / "settings.json").read_text())
    assert settings["guidance"] == 3.0 and len(list((folder / "images").glob("*.png"))) == 20
    found = json.loads((folder / "e.json").read_text())
    assert 0 <= found["metrics"]["accuracy_classifier"] <= 1 and found["about"]["guidance"] == 3.0


PUBLISHED = """
import ml_collections

def get_config():
    D = lambda **fields: ml_collections.ConfigDict(initial_dictionary=fields)
    return D(
        {distillation}
        seed=0,
        dataset=D(name="CIFAR10", args=D(class_conditional=False, randflip=True)),
        sampler="ddim",
        model=D(
            name="unet_iddpm",
            args=D(ch=256, emb_ch=1024, ch_mult=[1], num_res_blocks=3, attn_resolutions=[16], num_heads=1,
                   dropout={dropout}, logsnr_input_type="inv_cos", resblock_resample=True),
            mean_type="x", logvar_type="fixed_large", mean_loss_weight_type="snr_trunc",
            train_num_steps={num_steps}, eval_sampling_num_steps={num_steps} or 1024,
            train_logsnr_schedule=D(name="cosine", logsnr_min=-20.0, logsnr_max=20.0),
            eval_logsnr_schedule=D(name="cosine", logsnr_min=-20.0, logsnr_max=20.0),
            eval_clip_denoised=True,
        ),
        train=D(
            batch_size=128, optimizer="adam", learning_rate=2e-4, learning_rate_warmup_steps={warmup},
            {anneal} weight_decay=0.0, ema_decay={ema}, grad_clip=1.0, substeps=10, enable_update_skip=False,
            log_loss_every_steps=100, checkpoint_every_secs=900, eval_every_steps=10000,
        ),
    )
"""


def write_published(folder):
    """Write config files of the published code, which have none of our own fields."""
    base, ladder = folder / "base.py", folder / "ladder.py"
    base.write_text(PUBLISHED.format(distillation="", dropout=0.2, num_steps=0, warmup=1000, anneal="", ema=0.9999))
    distillation = (
        "distillation=D(teacher_checkpoint_path='gs://gresearch/diffusion-distillation/cifar_original', "
        "steps_per_iter=50000, only_finetune_temb=False, start_num_steps=8192, end_num_steps=1),"
    )
    anneal = "learning_rate_anneal_type='linear', learning_rate_anneal_steps=50000,"
    ladder.write_text(
        PUBLISHED.format(distillation=distillation, dropout=0.0, num_steps=1, warmup=0, anneal=anneal, ema=0.0)
    )
    return base, ladder


@pytest.mark.slow
def test_configs_of_the_published_schema_run(runs):
    assert load(runs / "published" / "l" / "steps_0001")[1].step == 1
    assert cfg.resolve(cfg.load(runs / "ladder.py")).distillation.start_num_steps == 8192


@pytest.mark.parametrize(
    ("flag", "messages"),
    [
        ("on_error=raise", ("1 of 13 images cannot be used:\n", "broken.jpg: it is not a PNG")),
        ("image_size=0", ("image_size=0 must be an integer of at least 1",)),
        ("path=/nowhere", ("config.dataset.args.path='/nowhere' is not a folder",)),
        ("crops=True", ("no config.dataset.args.crops. Did you mean 'crop'?",)),
    ],
)
def test_broken_images_and_bad_arguments_of_a_folder_are_named(tmp_path, images, flag, messages):
    flags = ["--config=configs/folder_base.py", *SHRUNK, *IMAGES[:-1], f"--config.dataset.args.path={images}"]
    error = call("train", *flags, f"--config.dataset.args.{flag}", f"--workdir={tmp_path}", fails=True)
    assert all(message in error for message in messages) and "Traceback" not in error
    assert not list(tmp_path.iterdir())
