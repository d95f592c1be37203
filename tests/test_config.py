import functools
import json
import re
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from diffusion_distillation import config as cfg
from diffusion_distillation.methods import Rung, ladder_rungs
from diffusion_distillation.networks.model import count_params, init_params, make_network
from diffusion_distillation.training.optimizers import learning_rate

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
AUTOENCODERS = [path for path in CONFIGS if path.stem.endswith("_autoencoder")]

LATENT_CLASSES = {"folder_latent_base": 1, "folder_latent_distill": 1}  # of configs of latents; others have ImageNet's
IMAGES = {"CIFAR10": (32, 3, 10), "digits": (8, 1, 10), "MNIST": (28, 1, 10), "letters": (32, 3, 26)}


def base():
    return cfg.load(CONFIGS[0].with_name("digits_base.py"))


def ladder():
    config = cfg.load(CONFIGS[0].with_name("digits_distill.py"))
    config.distillation.teacher_checkpoint_path = "runs/digits/base"
    return config


@functools.cache
def number_of_parameters(network, image_shape, num_classes):
    return count_params(jax.eval_shape(lambda: init_params(network, jax.random.key(0), image_shape, num_classes)))


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in AUTOENCODERS], ids=lambda path: path.stem)
def test_every_config_file_makes_a_network_of_the_stated_size(path):
    config = cfg.load(path)
    if "distillation" in config:
        config.distillation.teacher_checkpoint_path = "somewhere"
    config = cfg.resolve(config)
    size, channels, classes = IMAGES.get(config.dataset.name, (config.dataset.args.get("image_size"), 3, 1000))
    image_shape, num_classes = (size, size, channels), classes if config.dataset.args.get("class_conditional") else 1
    if config.dataset.name == "Latents":  # of images at 256x256
        image_shape, num_classes = (32, 32, 4), LATENT_CLASSES.get(path.stem, 1000)
    if path.stem.startswith("letters_latent"):
        image_shape, num_classes = (8, 8, 4), 26
    network = make_network(config.model, image_shape, num_classes)
    if "dropout" in config.model.args:
        network = network.clone(dropout=0.0)  # a base model and its students count as one
    assert f"\n{number_of_parameters(network, image_shape, num_classes):,} parameters" in path.read_text()


def test_configs_of_other_papers_have_their_settings():
    """The dataset and the parameterization are those of the base model."""
    found = {}
    for name in ("cifar_tract", "cifar_consistency", "imagenet64_consistency", "imagenet64_addim"):
        config = cfg.load(CONFIGS[0].with_name(f"{name}.py"))
        config.distillation.teacher_checkpoint_path = "somewhere"
        found[name] = cfg.resolve(config)
        assert found[name].model.args.dropout == 0
        base = cfg.resolve(cfg.load(CONFIGS[0].with_name(f"{name.partition('_')[0]}_base.py")))
        assert found[name].dataset == base.dataset and found[name].model.mean_type == base.model.mean_type
    tract, tuning, multistep, addim = found.values()
    assert [(rung.teacher_num_steps, rung.num_steps) for rung in ladder_rungs(tract)] == [(1024, 32), (32, 1)]
    assert tract.distillation.args.self_teacher_decay == 0.5 and tract.model.mean_loss_weight_type == "snr_trunc"
    assert (tract.train.batch_size, tract.train.learning_rate) == (256, 2e-4)
    assert 2 * 256 * tract.distillation.steps_per_iter == 96_000_000
    of = tuning.distillation.args
    assert (of.kind, of.times, of.norm, of.tau_mean, of.tau_std) == ("training", "tuning", "huber", -1.1, 2.0)
    assert tuning.train.batch_size == 128 and ladder_rungs(tuning)[0].num_steps == 1
    of, [rung] = multistep.distillation.args, ladder_rungs(multistep)
    assert (of.kind, of.times, of.norm, of.first_grid, of.grid_updates) == (
        "distillation",
        "grid",
        "huber",
        64,
        100_000,
    )
    assert rung == (1280, 8) and multistep.distillation.teacher_step == "addim"
    assert addim.distillation.teacher_step == "addim" and addim.distillation.teacher_step_rungs == 1
    assert ladder_rungs(addim)[0] == (1024, 512)


def test_the_config_of_edm_has_the_settings_of_its_paper():
    config = cfg.resolve(cfg.load(CONFIGS[0].with_name("cifar_edm_base.py")))
    model, train = config.model, config.train
    assert (model.mean_type, model.mean_loss_weight_type, model.sigma_data) == ("edm", "edm_mse", 0.5)
    assert model.train_times.to_dict() == dict(name="log_normal", mean=-1.2, std=1.2)
    assert model.train_logsnr_schedule.to_dict() == model.eval_logsnr_schedule.to_dict() == {"name": "karras"}
    assert (config.sampler, model.eval_sampling_num_steps, model.eval_clip_denoised) == ("heun", 18, False)
    assert (model.args.logsnr_input_type, model.args.time_scale, model.args.dropout) == ("c_noise", 1.0, 0.13)
    assert train.num_train_steps * train.batch_size == 200_000_000
    assert train.ema_decay ** (500_000 / train.batch_size) == pytest.approx(0.5)
    assert round(train.learning_rate_warmup_steps * train.batch_size / 1e6) == 10
    assert (train.learning_rate, train.weight_decay, train.grad_clip) == (1e-3, 0.0, 0.0)


# Design, section 5, and the lengths of training of the paper's section 5.
PAPER = {
    "cifar": (256, (1, 1, 1), 1024, (8, 16), 1, None, 0.2, "x", 128, 2e-4, 5e-5, 8192, 800_000, 0.001),
    "imagenet64": (192, (1, 2, 3, 4), 768, (8, 16, 32), None, 64, 0.1, "both", 2048, 3e-4, 1e-4, 1024, 550_000, 0.0),
    **dict.fromkeys(
        ("bedroom128", "church128"),
        (64, (1, 2, 4, 6, 8), 768, (8, 16, 32), None, 64, 0.1, "both", 2048, 3e-4, 1e-4, 1024, 400_000, 0.0),
    ),
}


@pytest.mark.parametrize("name", PAPER)
def test_configs_of_the_paper_have_its_settings(name):
    ch, mult, emb, attn, heads, head_dim, dropout, mean, batch, rate, distill_rate, start, steps, decay = PAPER[name]
    base, ladder = (cfg.load(CONFIGS[0].with_name(f"{name}_{kind}.py")) for kind in ("base", "distill"))
    ladder.distillation.teacher_checkpoint_path = "somewhere"
    base, ladder = cfg.resolve(base), cfg.resolve(ladder)
    for config in (base, ladder):
        args = config.model.args
        assert (args.ch, args.ch_mult, args.emb_ch, args.attn_resolutions) == (ch, mult, emb, attn)
        assert (args.num_heads, args.head_dim, args.num_res_blocks, args.resblock_resample) == (
            heads,
            head_dim,
            3,
            True,
        )
        assert (config.model.mean_type, config.model.mean_loss_weight_type) == (mean, "snr_trunc")
        assert config.model.train_logsnr_schedule.to_dict() == {"name": "cosine"}
        assert config.model.eval_sampling_num_steps == 1024 and config.model.eval_clip_denoised
        assert (config.train.batch_size, config.train.grad_clip, config.train.substeps) == (batch, 1.0, 10)
        assert config.train.optimizer == "adam" and config.dataset.args.randflip
    assert (base.model.args.dropout, ladder.model.args.dropout) == (dropout, 0)
    assert (base.train.learning_rate, ladder.train.learning_rate) == (rate, distill_rate)
    assert (base.train.weight_decay, ladder.train.weight_decay) == (decay, 0)
    assert (base.train.ema_decay, ladder.train.ema_decay) == (0.9999, 0)
    assert (base.train.learning_rate_warmup_steps, ladder.train.learning_rate_warmup_steps) == (1000, 0)
    assert (base.train.learning_rate_anneal_type, ladder.train.learning_rate_anneal_type) == ("none", "linear")
    assert (base.train.num_train_steps, ladder.distillation.start_num_steps) == (steps, start)
    lengths = [
        cfg.rung_config(ladder, Rung(2 * num_steps, num_steps)).train.num_train_steps
        for num_steps in (start // 2, 4, 2, 1)
    ]
    assert lengths == [50_000, 50_000, 100_000, 100_000]


def test_the_cars_configs_have_the_seed_projects_settings():
    base, ladder = (cfg.load(CONFIGS[0].with_name(f"cars64_{kind}.py")) for kind in ("base", "distill"))
    assert base.train.batch_size == ladder.train.batch_size == 32
    assert base.train.learning_rate == 10 * ladder.train.learning_rate == 1e-3
    assert (ladder.distillation.start_num_steps, ladder.distillation.end_num_steps) == (256, 2)
    assert base.model.train_logsnr_schedule.name == base.model.eval_logsnr_schedule.name == "nichol_dhariwal"


def test_resolving_twice_changes_nothing():
    once = cfg.resolve(ladder())
    assert cfg.resolve(ConfigDict(once.to_dict())).to_json() == once.to_json()


def test_a_config_of_the_published_schema_resolves():
    """It has none of our own fields, lists for tuples, and all arguments of the schedules."""
    schedule = dict(name="cosine", logsnr_min=-20.0, logsnr_max=20.0)
    published = ConfigDict(
        dict(
            seed=0,
            dataset=dict(name="digits", args=dict(class_conditional=False, randflip=True)),
            sampler="ddim",
            model=dict(
                name="unet_iddpm",
                args=dict(
                    ch=256,
                    emb_ch=1024,
                    ch_mult=[1, 1, 1],
                    num_res_blocks=3,
                    attn_resolutions=[8, 16],
                    num_heads=1,
                    dropout=0.2,
                    logsnr_input_type="inv_cos",
                    resblock_resample=True,
                ),
                mean_type="x",
                logvar_type="fixed_large",
                mean_loss_weight_type="snr_trunc",
                train_num_steps=0,
                eval_sampling_num_steps=1024,
                train_logsnr_schedule=schedule,
                eval_logsnr_schedule=schedule,
                eval_clip_denoised=True,
            ),
            train=dict(
                batch_size=128,
                optimizer="adam",
                learning_rate=2e-4,
                learning_rate_warmup_steps=1000,
                weight_decay=0.001,
                ema_decay=0.9999,
                grad_clip=1.0,
                substeps=10,
                enable_update_skip=False,
                log_loss_every_steps=100,
                checkpoint_every_secs=900,
                eval_every_steps=10000,
            ),
        )
    )
    resolved = cfg.resolve(published)
    assert resolved.model.args.ch_mult == (1, 1, 1)
    assert resolved.train.learning_rate_anneal_type == "none"
    assert resolved.train.parallel == "jit"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.learning_rat", 1e-3, r"Unknown field config.train.learning_rat. Did you mean 'learning_rate'\?"),
        ("modle", {}, r"Unknown field config.modle. Did you mean 'model'\?"),
        ("model.mean_type", "epsilon", r"config.model.mean_type='epsilon' is not one of \['x', 'eps', 'v', 'both'"),
        ("model.mean_loss_weight_type", "snr_trnc", r"is not one of .* Did you mean 'snr_trunc'\?"),
        (
            "sampler",
            "dim",
            r"config.sampler='dim' is not one of .*'stochastic'\]. Did you mean 'ddim'\?",
        ),
        ("model.train_logsnr_schedule", {"name": "linear"}, r"train_logsnr_schedule: Unknown logsnr schedule 'linear'"),
        ("model.logvar_type", "learned", "config.model.logvar_type: Unknown logvar_type 'learned'"),
        ("model.args.ch", None, r"config.model.args.ch is missing: every config must set it \(int\)"),
        ("train.batch_size", 6.5, "config.train.batch_size=6.5 must be of type int"),
        ("train.batch_size", -64, "config.train.batch_size=-64 must not be negative"),
        ("train.grad_clip", float("nan"), "config.train.grad_clip=nan must not be negative"),
        ("train.substeps", 0, "config.train.substeps=0 must be at least 1"),
        ("train.retain_checkpoint_every_steps", 25, "every_steps=25 must be a multiple of config.train.substeps=10"),
        *((f"train.{name}", 1.0, "=1.0 must be below 1") for name in ("ema_decay", "adam_beta2", "optimizer_beta")),
        ("train.adam_eps", 0.0, "config.train.adam_eps=0.0 must be more than 0"),
        ("model.eval_sampling_num_steps", 0, "eval_sampling_num_steps=0 must be at least 1"),
        ("model.args.guidance_range", (), r"guidance_range=\(\) must be the smallest weight"),
        ("model.args.guidance_range", ("a", "b"), r"guidance_range=\('a', 'b'\) must be the smallest weight"),
        ("model.logvar_type", "fixed_medium:2", "logvar_type: Unknown variance 'medium:2'"),
        ("model.train_logsnr_schedule", {"name": "cosine", "logsnr_min": "low"}, "logsnr_min='low' must be a number"),
        ("model.train_logsnr_schedule", {"name": "nichol_dhariwal", "offset": -1.0}, "needs offset >= 0"),
        ("dataset.args", {"randflip": "off"}, "config.dataset.args.randflip='off' must be True or False"),
        ("eval.features", ("pixels", 3), r"eval.features=\('pixels', 3\) must contain values of type str, not 3"),
        ("distillation.stages", {"1": 3}, "config.distillation.stages.1=3 must be a section"),
        (
            "train",
            {"batch_size": 8, "learning_rate": 1.0, "avg_type": "ema"},
            "avg_type='ema' needs config.train.avg_steps",
        ),
        ("eval.teacher_num_steps", (4, 0), r"eval.teacher_num_steps=\(4, 0\) must be numbers of sampling steps"),
        ("train", 3, "config.train=3 must be a section"),
        ("distillation.start_num_steps", 48, "config.distillation: start_num_steps=48 must be end_num_steps=1 times a"),
        ("distillation.teacher_checkpoint_path", None, "teacher_checkpoint_path is missing"),
        (
            "distillation.stages",
            {"3": {}},
            r"stages.3: no student has 3 steps; the students have \[32, 16, 8, 4, 2, 1\]\. .*stages.3=None",
        ),
        (
            "distillation.stages",
            {"2": {"learning_rates": 1.0}},
            r"2.learning_rates. Did you mean 'learning_rate'",
        ),
        (
            "distillation.method",
            "progresive",
            "Unknown config.distillation.method='progresive'. Did",
        ),
        ("sampler", "noisy", "config.sampler='ancestral' must be 'ddim' for a ladder: students learn DDIM steps"),
        ("model.eval_logsnr_schedule", {"name": "nichol_dhariwal"}, "eval_logsnr_schedule=.* differs from train_"),
        ("distillation.stages", {"2": {"updates_factor": -1.0}}, "stages.2.updates_factor=-1.0 must not be negative"),
        ("distillation.stages", {"2": {"updates_factor": 0.0}}, "stages.2.updates_factor=0.0 must be more than 0"),
        ("distillation.stages", {"2": {"substeps": 0}}, "stages.2: config.train.substeps=0 must be at least"),
        (
            "distillation.stages",
            {"2": {"microbatch_size": 3}},
            "stages.2: config.train.batch_size=64 must be a",
        ),
        ("model.sigma_data", 0.0, "config.model.sigma_data=0.0 must be more than 0"),
        (
            "model.eval_guidance_interval",
            (3.0, -4.0),
            r"eval_guidance_interval: guidance_interval=\(3.0, -4.0\) must be",
        ),
        (
            "distillation.teacher_guidance_interval",
            (-4.0, 3.0),
            "needs a guided teacher: set .*teacher_guidance to its",
        ),
        ("distillation.teacher_dtype", "float16", "teacher_dtype='float16' is not one of"),
        ("distillation.stages", {"2": {"steps_per_iter": "9"}}, "stages.2.steps_per_iter='9' must be of type int"),
    ],
)
def test_bad_fields_are_refused(field, value, message):
    given = ladder().to_dict()
    *sections, name = field.split(".")
    section = given
    for part in sections:
        section = section[part]
    section[name] = value
    with pytest.raises(ValueError, match=message):
        cfg.resolve(ConfigDict(given))


@pytest.mark.parametrize(
    ("schedule", "remedy"),
    [
        (dict(name="karras", num_scales=40), dict(sigma_min=0.0, num_scales=None)),
        (dict(name="flow", last_start=0.1), dict(last_start=None)),
        (dict(name="discrete", spacing="leading"), dict(spacing="trailing")),
    ],
    ids=lambda part: part.get("name"),
)
def test_a_ladder_needs_a_schedule_whose_grids_nest(schedule, remedy):
    """The message names the remedy."""
    config = ladder()
    config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = schedule
    named = ", ".join(f"{name}={value!r}" for name, value in remedy.items())
    with pytest.raises(ValueError, match=rf"'{schedule['name']}'.* cannot be distilled: .* Set {named} in both"):
        cfg.resolve(config)
    config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = schedule | remedy
    cfg.resolve(config)


def test_a_student_with_a_guidance_weight_has_no_teacher_at_one_weight():
    config = ladder()
    config.model.args.guidance_range = (0.0, 4.0)
    config.distillation.teacher_guidance = 1.0
    with pytest.raises(ValueError, match=r"teacher_guidance=1.0 is for students without a guidance weight, but these"):
        cfg.resolve(config)


def dit_base(**args):
    """A base model's config with a diffusion transformer."""
    config = cfg.defaults("dit")
    config.dataset.name = "digits"
    config.train.update(batch_size=8, learning_rate=1e-3)
    config.model.args = args
    return config


def test_each_network_has_its_own_args():
    """Their defaults and types are those of the network's attributes."""
    given = dict(patch_size=2, hidden_size=32, depth=2, num_heads=2)
    args = cfg.resolve(dit_base(**given, mlp_ratio=3)).model.args
    assert (args.patch_size, args.mlp_ratio, args.logsnr_input_type, args.guidance_range) == (2, 3.0, "inv_cos", None)
    for change, message in [
        (dict(patch=2), r"Unknown field config.model.args.patch. Did you mean 'patch_size'\?"),
        (dict(ch_mult=(1,)), "Unknown field config.model.args.ch_mult"),
        (dict(num_classes=3), "Unknown field config.model.args.num_classes"),
        (dict(depth=None), r"config.model.args.depth is missing: every config must set it \(int\)"),
        (dict(depth=2.5), "config.model.args.depth=2.5 must be of type int"),
        (dict(logsnr_input_type="time"), r"args.logsnr_input_type='time' is not one of \['inv_cos', 'sigmoid', "),
    ]:
        with pytest.raises(ValueError, match=message):
            cfg.resolve(dit_base(**given | change))


def test_a_ladder_of_a_network_without_dropout():
    base = dit_base(patch_size=2, hidden_size=32, depth=2, num_heads=2)
    config = cfg.distillation_of(base)
    config.distillation.update(dict(teacher_checkpoint_path="runs/digits/base", start_num_steps=4))
    assert cfg.resolve(config).model.args == cfg.resolve(base).model.args


def test_old_names_of_fields_are_accepted(tmp_path):
    """In a config file that starts from the defaults, in one that starts from such a file, and in stored values."""
    base, derived = CONFIGS[0].with_name("digits_base.py"), tmp_path / "derived.py"
    lines = ["def get_config():", f"config = load({str(base)!r})", "config.train.num_steps = 7", "return config"]
    derived.write_text("from diffusion_distillation.config import load\n" + "\n    ".join(lines))
    loaded = cfg.load(derived)
    assert "num_steps" not in loaded.train and loaded.train.num_train_steps == 7
    resolved = cfg.resolve(loaded)
    stored = resolved.to_dict()
    stored["train"]["num_steps"] = stored["train"].pop("num_train_steps")
    stored["train"]["shard_state"] = {"none": False}[stored["train"].pop("shard")]
    assert cfg.resolve(ConfigDict(stored)).to_json() == resolved.to_json()
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert cfg.resolve(cfg.load(tmp_path / "config.json")).to_json() == resolved.to_json()
    stored["train"]["num_steps"] = "7"
    with pytest.raises(ValueError, match=r"config.train.num_train_steps='7' must be of type int"):
        cfg.resolve(ConfigDict(stored))


def test_pmap_does_not_divide_a_state():
    for fields, shard in ((dict(shard_state=True), "state"), (dict(shard="all"), "all")):
        config = base()
        config.train.update(dict(parallel="pmap", **fields))
        with pytest.raises(ValueError, match=rf"config.train.shard='{shard}' needs config.train.parallel='jit'"):
            cfg.resolve(config)


def test_old_sections_of_methods_are_accepted():
    """In a config file that starts from `distillation_of`, and in stored values, which have the other methods' too."""
    config = ladder()
    config.distillation.method = "consistency"
    config.distillation.stages = {}
    config.distillation.consistency.kind = "training"
    config.distillation.consistency.tuning_stages = 4
    args = cfg.resolve(config).distillation.args
    assert (args.kind, args.tuning_phases, args.first_grid) == ("training", 4, 64)
    stored = cfg.resolve(ladder()).to_dict()
    del stored["distillation"]["args"]
    stored["distillation"] |= {"tract": {"self_teacher_decay": 0.5}, "consistency": {"first_grid": 64}}
    assert cfg.resolve(ConfigDict(stored)).to_json() == cfg.resolve(ladder()).to_json()


def test_a_ladder_does_not_inherit_its_teachers_anneal_and_start():
    """The learning rate of a student falls to 0 over its own updates."""
    trained = base()
    trained.train.learning_rate_anneal_steps, trained.train.init_from = 2000, "runs/other"
    config = cfg.distillation_of(trained)
    config.distillation.update(dict(teacher_checkpoint_path="runs/digits/base", start_num_steps=4, steps_per_iter=120))
    student = cfg.rung_config(cfg.resolve(config), Rung(4, 2)).train
    assert learning_rate(student)(119) == pytest.approx(student.learning_rate / 120)


def test_overrides_of_none_count_as_unset():
    config = ladder()
    config.distillation.stages = {"1": None}
    assert cfg.resolve(config).distillation.stages.to_dict() == {}


def test_overrides_may_be_named_by_numbers():
    config = ladder()
    config.distillation.stages = {2: {"updates_factor": 2.0}}
    assert list(cfg.resolve(config).distillation.stages) == ["2"]


def test_a_shortened_ladder_ignores_overrides_of_students_that_it_does_not_reach():
    config = ladder()
    config.distillation.stages = {str(steps): {"updates_factor": 2.0} for steps in (4, 2, 1)}
    config.distillation.end_num_steps = 4
    assert list(cfg.resolve(config).distillation.stages) == ["4"]


def test_a_config_file_without_its_suffix_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    with pytest.raises(ValueError, match=r"There is no config 'mine'\. .* Did you mean the file 'mine\.py'\?"):
        cfg.find("mine")


def test_the_listing_shows_each_field_with_its_value_and_type():
    config = base()
    config.model.args.ch_mult = (1, 2)
    lines = "\n".join(cfg.listing("config", config))
    assert re.search(r'^--config.model.args.ch_mult="\(1, 2\)" +tuple, must be set$', lines, re.M)
    assert re.search(r"^--config.train.optimizer=adam +one of adam, momentum, nesterov$", lines, re.M)
    assert "distillation" not in lines
    every = "\n".join(cfg.listing("ladder"))
    assert re.search(r"^--ladder.train.batch_size= +int, must be set$", every, re.M)
    assert re.search(r"^--ladder.distillation.steps_per_iter=50000 +int$", every, re.M)
    consistency = "\n".join(cfg.listing("config", cfg.load(CONFIGS[0].with_name("digits_consistency.py"))))
    assert re.search(r"^--config.distillation.args.huber=None +float or None$", consistency, re.M)
    assert re.search(r"^--config.distillation.args.first_grid=16 +int$", consistency, re.M)
    assert re.search(r"^--config.distillation.args.times=grid +one of grid, tuning$", consistency, re.M)


def test_a_student_gets_the_overrides_of_its_rung():
    config = ladder()
    config.train.learning_rate_anneal_steps = 150
    config.distillation.stages = {
        "1": {"steps_per_iter": 400, "learning_rate": 3e-4},
        "2": {"steps_per_iter": 7, "updates_factor": 2.0},
        "4": {"weight_decay": 0.1},
        "16": {"updates_factor": 2.5},
    }
    config = cfg.resolve(config)
    assert cfg.resolve(cfg.ConfigDict(config.to_dict())).to_json() == config.to_json()
    assert [cfg.rung_config(config, rung).train.num_train_steps for rung in ladder_rungs(config)] == [
        120, 300, 120, 120, 7, 400,
    ]  # fmt: skip
    plain, last, decayed = (cfg.rung_config(config, Rung(2 * num_steps, num_steps)) for num_steps in (8, 1, 4))
    fields = ("num_train_steps", "learning_rate", "learning_rate_anneal_steps")
    assert [plain.train[field] for field in fields] == [120, 1e-3, 150]
    assert [last.train[field] for field in fields] == [400, 3e-4, 0]
    assert decayed.train.weight_decay == 0.1
    assert len({config.seed, plain.seed, last.seed, decayed.seed}) == 4
    assert config.train.weight_decay == 0.0


def test_relative_paths_are_stored_absolute(tmp_path, monkeypatch):
    """A stored config is read from other working folders. A packaged model's name and a URL stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("images", "base"):
        (tmp_path / name).mkdir()
    config = ladder()
    config.dataset.args.path = "images"
    for given, stored in {
        "base": str(tmp_path / "base"),
        "~/base": str(tmp_path / "base"),
        "digits": "digits",
        "hf://user/name": "hf://user/name",
        "not/yet/there": str(tmp_path / "not" / "yet" / "there"),
    }.items():
        config.distillation.teacher_checkpoint_path = given
        resolved = cfg.resolve(config)
        assert resolved.distillation.teacher_checkpoint_path == stored
        assert resolved.dataset.args.path == str(tmp_path / "images")
    shared = cfg.to_share(resolved)
    assert (shared.dataset.args.path, shared.distillation.teacher_checkpoint_path) == ("images", "there")
