"""Targets, times and losses of the methods, compared with the formulas of the papers in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracle
from helpers.steps import ADDIM, METHODS, Dropping, make_config, model_of
from hypothesis import given
from hypothesis import strategies as st

from diffusion_distillation.diffusion import Prediction, make_denoiser, q_sample
from diffusion_distillation.distillation import several_step_target, two_step_target
from diffusion_distillation.losses import data_target, training_loss
from diffusion_distillation.methods import Denoisers, Rung, consistency, make_method
from diffusion_distillation.methods.rungs import GroupTimes, group_times, listed_rungs
from diffusion_distillation.sampling import SOLVERS
from diffusion_distillation.schedules import Cosine, get_logsnr_schedule, time_of
from diffusion_distillation.training.step import Teacher, init_state, make_train_step

SHAPE = (8, 4, 4, 1)
ANGLES = {"cosine": oracle.cosine_angle, "nichol_dhariwal": oracle.nichol_dhariwal_angle}


def made(name, schedule):
    """The method of this name with another schedule."""
    config = make_config(distillation=METHODS[name]).copy_and_resolve_references()
    with config.unlocked():
        config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = {"name": schedule}
    return make_method(config)


def column(a):
    return np.asarray(a, np.float64)[:, None, None, None]


def relative(found, expected):
    """The largest error of an example, relative to its norm."""
    found, expected = (np.reshape(np.float64(a), (len(a), -1)) for a in (found, expected))
    return np.max(np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1))


def check(target, z, x, phi):
    """Compare a target with the x of an oracle, and with its v and eps."""
    alpha, sigma = oracle.alpha_sigma(column(phi))
    v = (alpha * z - x) / sigma
    for found, expected in ((target.x, x), (target.v, v), (target.eps, sigma * z + alpha * v)):
        assert relative(found, expected) < 1e-6


def by_paper(z, v1, v2, phi_t, phi_m, phi_s, above_m, above_s, *, solver="ddim"):
    """A solver's step with v1 from t to m; x of v2 there; DDIM on to s; and back from t in one step.

    So are algorithm 2 of Berthelot et al. (2023) and algorithm 2 of Heek et al. (2024).
    """
    (a_t, s_t), (a_m, s_m), (a_s, s_s) = (oracle.alpha_sigma(column(phi)) for phi in (phi_t, phi_m, phi_s))
    x1 = a_t * z - s_t * v1
    first = lambda z, angle: np.cos(column(angle)) * z - np.sin(column(angle)) * v1  # noqa: E731
    z_m = oracle.SOLVERS[solver](first, z, [phi_t, np.where(above_m, phi_m, 0)])
    x2, eps2 = a_m * z_m - s_m * v2, s_m * z_m + a_m * v2
    z_s = a_s * x2 + s_s * eps2
    at_m = column(np.isclose(phi_m, phi_s) | ~above_m) > 0  # nothing is left to do
    x = oracle.inverse_step(np.where(at_m, z_m, z_s), z, np.where(at_m, x1, x2), phi_t, phi_s, above_s)
    return np.where(at_m & (column(above_m) > 0), oracle.inverse_step(z_m, z, x1, phi_t, phi_m, above_m), x)


@functools.cache
def compiled(name, schedule):
    method = made(name, schedule)

    @jax.jit
    def target(z, x, eps, v1, v2, times):
        one, two = (make_denoiser(lambda z, logsnr, v=v: v, "v") for v in (v1, v2))
        return method.target(Denoisers(one, two, two), x, eps, z, times)

    return target


GRIDS = [(2**k, groups) for k in range(1, 14) for groups in {1, 2 ** (k // 2), 2 ** (k - 1), 2**k}]


@pytest.mark.parametrize("schedule", ANGLES)
@pytest.mark.parametrize(
    "name", ["tract", "tract, adjusted", "tract, heun", "distillation", "distillation, adjusted", "training"]
)
@given(seed=st.integers(0, 2**32 - 1), grid=st.sampled_from(GRIDS))
def test_targets_of_groups_match_the_papers_in_float64(name, schedule, seed, grid):
    """In groups of any size on any grid, including the first and last steps of the first and last groups."""
    rng = np.random.default_rng(seed)
    grid, groups = grid
    z, x, eps, v1, v2 = rng.standard_normal((5, *SHAPE)).astype(np.float32)
    size = grid // groups
    i = rng.integers(0, grid, SHAPE[0])
    i[:4] = 0, size - 1, grid - size, grid - 1
    rung = Rung(jnp.asarray(grid), jnp.asarray(groups))
    times = stages = drawn_at(i, grid, groups, rung)
    angle = ANGLES[schedule]
    t, m, s = (i + 1) / grid, i / grid, i // size / groups
    phi_t, phi_m, phi_s = angle(t), angle(m), angle(s)
    if name == "training":
        alpha, sigma = oracle.alpha_sigma(column(phi_t))
        z = np.float32(alpha * x + sigma * eps)
        v1 = alpha * eps - sigma * x
    if not name.startswith("tract"):
        times = consistency.WeightedTimes(stages, jnp.ones(len(i)))
    target = compiled(name, schedule)(z, x, eps, v1.astype(np.float32), v2, times)
    given = (np.float64(a) for a in (z, v1, v2))
    solver = {"tract, heun": "heun"}.get(name, "addim" if "adjusted" in name else "ddim")
    expected = by_paper(*given, phi_t, phi_m, phi_s, i > 0, i >= size, solver=solver)
    check(target, z, expected, phi_t)


def drawn_at(i, grid, groups, rung):
    """The stages that `group_times` gives to the draws i."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_distillation.methods.rungs.discrete_steps", lambda keys, num_steps: jnp.asarray(i))
        return group_times(jax.random.split(jax.random.key(0), len(i)), grid, groups, rung, Cosine())


@functools.cache
def compiled_steps(schedule, solver):
    schedule = get_logsnr_schedule(schedule)

    @jax.jit
    def target(z, shift, i, num_steps, count):
        teacher = make_denoiser(lambda z, logsnr: shift - 0.5 * z, "v")
        return several_step_target(teacher, z, i, num_steps, count, schedule, solver=solver)

    return target


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("schedule", ANGLES)
@given(seed=st.integers(0, 2**32 - 1), steps=st.sampled_from([(2**k, 2**j) for k in range(14) for j in range(14 - k)]))
def test_targets_of_several_steps_match_float64(schedule, solver, seed, steps):
    """As many of the solver's steps in the papers' form, and their quotient at last; with grids of 8192 and less."""
    num_steps, count = steps
    count = min(count, 8)  # float32 loses a little with each
    rng = np.random.default_rng(seed)
    z, shift = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    i = rng.integers(0, num_steps, SHAPE[0])
    i[:2] = 0, num_steps - 1
    target = compiled_steps(schedule, solver)(z, shift, i, num_steps, count)

    angle, grid = ANGLES[schedule], num_steps * count
    left = [(i + 1) * count - j for j in range(count + 1)]
    angles = [np.where(n > 0, angle(n / grid), 0) for n in left]

    def teacher(z, phi):
        return np.cos(column(phi)) * z - np.sin(column(phi)) * (shift - 0.5 * z)

    z_s = oracle.SOLVERS[solver](teacher, np.float64(z), angles)
    phi_t, phi_s = angle((i + 1) / num_steps), angle(i / num_steps)
    check(target, z, oracle.inverse_step(z_s, np.float64(z), z_s, phi_t, phi_s, i > 0), phi_t)


@pytest.mark.parametrize("num_steps", [1, 8, 1024, 4096])
def test_a_target_of_two_steps_is_the_two_step_target(cosine, num_steps):
    rng = np.random.default_rng(0)
    z, i = rng.standard_normal(SHAPE).astype(np.float32), rng.integers(0, num_steps, SHAPE[0])
    teacher = make_denoiser(lambda z, logsnr: jnp.tanh(2 * z) * 0.7, "v")
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=2e-6),
        several_step_target(teacher, z, i, num_steps, 2, cosine),
        two_step_target(teacher, z, i, num_steps, cosine),
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("version", [(0, 10, 2), (0, 12, 0)])
def test_the_number_of_teacher_steps_may_be_a_constant(monkeypatch, cosine, version, count):
    """Then the loop over them is another one."""
    monkeypatch.setattr(jax, "__version_info__", version)
    rng = np.random.default_rng(0)
    (z, shift), i = rng.standard_normal((2, *SHAPE)).astype(np.float32), rng.integers(0, 8, SHAPE[0])
    teacher = make_denoiser(lambda z, logsnr: shift - 0.5 * z, "v")
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=2e-6),
        several_step_target(teacher, z, i, 8, count, cosine),
        compiled_steps("cosine", "ddim")(z, shift, i, 8, count),
    )


def test_rungs_that_do_not_fit_their_method_are_refused():
    assert listed_rungs((1024, 32, 1)) == (Rung(1024, 32), Rung(32, 1))
    for rungs in ((8,), (8, 3), (8, 8), (1, 8), (8, 0), (8, 4.0)):
        with pytest.raises(ValueError, match=r"rungs=.* must be the sampling steps of the teacher and of each student"):
            listed_rungs(rungs)
    of_consistency = dict(method="consistency", start_num_steps=None)
    for changes, message in [
        (dict(rungs=(8, 1)), r"rungs=\(8, 1\) is the whole ladder: unset start_num_steps=8"),
        (dict(start_num_steps=None), "is missing: set it to the teacher's number of sampling steps, or set rungs"),
        (of_consistency | dict(rungs=(8, 1)), r"rungs=\(8, 1\): method='consistency' trains one student"),
        (of_consistency | dict(end_num_steps=6), "must be a multiple of end_num_steps=6 .the groups"),
        (of_consistency | dict(start_num_steps=66, end_num_steps=4), "start_num_steps=66 .the last grid"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_config(distillation=changes)
    paper = make_method(make_config(distillation=dict(method="consistency", start_num_steps=None, end_num_steps=8)))
    assert paper.rungs == (Rung(1280, 8),)


@pytest.mark.parametrize(
    ("method", "args", "message"),
    [
        ("tract", dict(self_teacher_decay=1.0), "decay=1.0 must be at least 0 and below 1"),
        ("consistency", dict(first_grid=2000), "args.first_grid=2000 must be between end_num_steps=1 .* and 1280"),
        ("consistency", dict(huber=-1.0), "huber=-1.0 must not be negative"),
        ("consistency", dict(tuning_phases=0), "tuning_phases=0 must be at least 1"),
        ("consistency", dict(kind="trainin"), "args.kind='trainin' is not one of .* Did you mean 'training'"),
        ("consistency", dict(first_grid=1.5), "config.distillation.args.first_grid=1.5 must be of type int"),
        ("consistency", dict(frist_grid=16), "Unknown field config.distillation.args.frist_grid.*'first_grid'"),
        ("progressive", dict(kind="training"), "Unknown field config.distillation.args.kind"),
    ],
)
def test_a_bad_option_of_a_method_is_named(method, args, message):
    start = 8 if method in ("progressive", "tract") else None
    with pytest.raises(ValueError, match=message):
        make_config(distillation=dict(method=method, start_num_steps=start, args=args))


def test_options_that_do_not_go_together_are_refused():
    two_groups = dict(METHODS["tuning"], start_num_steps=None, end_num_steps=2)
    with pytest.raises(ValueError, match=r"args.times='tuning' needs one group: end_num_steps=2 must be 1"):
        make_config(distillation=two_groups)
    with pytest.raises(ValueError, match="kind='training' does not evaluate the teacher: set teacher_step='ddim'"):
        make_config(distillation=METHODS["training"] | ADDIM)


@pytest.mark.parametrize("name", ["adjusted", "heun", "dpmpp_2m"])
def test_only_the_first_rungs_use_the_solver(name):
    """The rung is traced, so all rungs share a program."""
    z = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    teacher = make_denoiser(lambda z, logsnr: -0.5 * z, "v")
    found = {}
    for of in ("progressive", name):
        method = make_method(make_config(distillation=METHODS[of]))

        @jax.jit
        def target(rung, method=method):
            times = method.times(jax.random.split(jax.random.key(0), 8), 0, rung)
            return method.target(Denoisers(teacher, teacher, None), z, z, z, times).v

        found[of] = [target(rung) for rung in method.rungs]
        assert target._cache_size() == 1
    apart = [np.abs(plain - by_solver).max() for plain, by_solver in zip(*found.values(), strict=True)]
    assert apart[0] > 1e-3 and max(apart[1:]) < 1e-6


def test_single_steps_of_a_multistep_solver_are_refused():
    for method in ("tract", "consistency"):
        with pytest.raises(ValueError, match=r"teacher_step='dpmpp_2m' needs .* one of .'ddim', 'addim', 'heun'"):
            make_config(distillation=dict(method=method, start_num_steps=64, teacher_step="dpmpp_2m"))


def keys(count):
    return jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize(("grid", "groups"), [(8, 1), (8, 2), (8, 8)])
def test_times_cover_the_grid_and_stages_end_where_their_group_starts(grid, groups):
    """Every step of the grid is equally likely."""
    times = group_times(keys(4000), grid, groups, Rung(grid, groups), Cosine())
    steps, counts = np.unique(np.asarray(times.t) * grid, return_counts=True)
    np.testing.assert_allclose(steps, np.arange(1, grid + 1), rtol=1e-6)
    assert counts.min() > 4000 / grid * 0.8
    end = np.maximum(times.t - times.dt1 - times.dt2, 0) * groups
    np.testing.assert_allclose(end, np.floor(times.t * groups - 1e-3), atol=1e-5)


def test_consistency_times_follow_the_papers():
    """N(i) grows in whole groups. The pairs of tuning are log-normal, and come closer in each phase."""
    for groups in (1, 4, 16):
        sizes = [int(consistency.grid_size(i / 100_000, 64, Rung(1280, groups))) for i in (0, 3e4, 1e5, 5e5)]
        expected = np.exp(np.log(64) + np.array([0, 0.3, 1, 1]) * np.log(1280 / 64))
        assert sizes == [round(n / groups) * groups for n in expected]
    method = make_method(make_config(distillation=METHODS["tuning"], num_train_steps=800))
    for update, stage in ((0, 0), (99, 0), (100, 1), (700, 7)):
        times = method.times(keys(4000), update, method.rungs[0])
        (t, dt1, dt2, _), weight = (jax.tree.map(np.float64, part) for part in times)
        tau, r = (np.tan(oracle.cosine_angle(at)) for at in (t, t - dt1))
        np.testing.assert_allclose([np.log(tau).mean(), np.log(tau).std()], [-1.1, 2.0], atol=0.1)
        wanted = np.maximum(tau * (1 - 0.5 ** (stage + 1) * (1 + 8 / (1 + np.exp(tau)))), 0)
        np.testing.assert_allclose(r, wanted, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(weight * (tau - wanted), 1, rtol=1e-3)
        np.testing.assert_array_equal(dt2, np.where(dt1 == t, 0, 1))


@pytest.mark.parametrize("schedule", ANGLES)
def test_time_of_inverts_the_schedule(schedule):
    schedule = get_logsnr_schedule(schedule)
    t = np.float32([1e-4, 0.01, 0.3, 0.5, 0.9, 0.99])
    np.testing.assert_allclose(time_of(schedule, schedule(t)), t, rtol=1e-5)
    np.testing.assert_array_equal(time_of(schedule, np.float32([30, -30])), [0, 1])


@pytest.mark.parametrize("t", [1 / 1280, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("norm", ["huber", "norm", "squared"])
def test_consistency_losses_follow_the_papers(norm, t):
    """The paper's norms of x - x*, times SNR + 1, in float64; no gradient is infinite where the two are equal."""
    config = make_config(distillation=METHODS["distillation"] | dict(args=dict(norm=norm)))
    method, rng = make_method(config), np.random.default_rng(0)
    z, v, wanted = rng.standard_normal((3, *SHAPE)).astype(np.float32)
    rung, angle = Rung(1280, 1), oracle.cosine_angle(t)
    drawn = method.times(keys(8), 0, rung)
    times = consistency.WeightedTimes(drawn.group._replace(t=jnp.full(8, t)), jnp.full(8, 1 / np.sin(angle) ** 2))

    def loss(v):
        return method.loss(Prediction(z, z, v), Prediction(z, z, wanted), times)

    error = np.sum((np.sin(angle) * (np.float64(v) - wanted)) ** 2, axis=(1, 2, 3))  # of x, at the same z
    expected = {"huber": np.sqrt(error + 1e-8) - 1e-4, "norm": np.sqrt(error), "squared": error / v[0].size}[norm]
    np.testing.assert_allclose(loss(v), expected * (np.exp(oracle.logsnr(angle)) + 1), rtol=1e-5)
    assert np.all(jax.grad(lambda v: loss(v).sum())(wanted) == 0)


class Exact:
    """Of the degenerate identities, which hold to rounding: float64 shows no more than that."""

    def __init__(self, cosine, grid=64):
        self.schedule, self.grid, rng = cosine, grid, np.random.default_rng(0)
        self.x, self.eps = rng.standard_normal((2, *SHAPE))
        self.teacher = make_denoiser(lambda z, logsnr: 0.3 * z - 0.1 * z**2, "v")
        self.other = make_denoiser(lambda z, logsnr: 0.9 * z, "v")

    def target(self, name, i, groups, student):
        method = made(name, "cosine")
        i = np.asarray(i)
        stages = drawn_at(i, self.grid, groups, Rung(self.grid, groups))
        exact = {name: jnp.float64(getattr(stages, name)) for name in ("t", "dt1", "dt2")}  # multiples of 1 / 64
        stages = stages._replace(**exact)
        z = q_sample(self.x, self.eps, self.schedule(stages.t))
        times = stages if name == "tract" else consistency.WeightedTimes(stages, jnp.ones(len(i)))
        return z, method.target(Denoisers(self.teacher, student, student), self.x, self.eps, z, times)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_special_cases_are_the_methods_that_they_reduce_to(cosine):
    with jax.enable_x64(True):
        exact = Exact(cosine)
        tops = np.arange(1, 17, 2)  # of groups of two steps
        for name in (
            "distillation",
            "tract",
        ):  # a student that equals its teacher has progressive distillation's target
            z, target = exact.target(name, tops, 32, exact.teacher)
            assert_same(target, two_step_target(exact.teacher, z, tops // 2, 32, cosine))
        steps = np.arange(0, 64, 8)
        z, target = exact.target("training", steps, 64, exact.other)  # a group a step: the ordinary diffusion loss
        data = data_target(exact.x, exact.eps, cosine((steps + 1) / 64))
        assert_same(target, data)
        squared = make_method(make_config(distillation=METHODS["training"] | dict(args=dict(norm="squared"))))
        t = (jnp.asarray(steps) + 1) / 64
        times = consistency.WeightedTimes(GroupTimes(t, t, t, Rung(64, 64)), 1 / jnp.sin(cosine.angle(t)) ** 2)
        losses = squared.loss(exact.other(z, 0.0), target, times), training_loss(exact.other(z, 0.0), data, "v_mse")
        np.testing.assert_allclose(*losses, rtol=1e-12)
        z, target = exact.target("training", steps, 1, exact.other)  # one group: the student's own x a step below
        alpha, sigma = oracle.alpha_sigma(column(oracle.cosine_angle(steps / 64)))
        below = exact.other(alpha * exact.x + sigma * exact.eps, cosine(steps / 64)).x
        np.testing.assert_allclose(target.x[1:], below[1:], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(target.x[0], exact.x[0], rtol=1e-12, atol=1e-12)


LEARNING = dict(optimizer="momentum", optimizer_beta=0.0, grad_clip=0.0, learning_rate=1.0)  # minus the gradient
READS = {"tract": "teacher average", "training": "student", "tuning": "student", "distillation": "teacher student"}


@pytest.mark.parametrize("name", METHODS)
def test_gradients_flow_to_the_student_alone(name, cosine):
    """The step's gradient is that of the loss against a constant target, whose networks are the ones it should read."""
    config = make_config(distillation=METHODS[name], **LEARNING)
    method, rung, network = make_method(config), make_method(config).rungs[0], Dropping()
    scales = {"student": 0.7, "teacher": -0.4, "average": 0.2}
    image = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
    state = init_state(config, method, {"scale": jnp.float32(0.7)})
    step = jax.jit(make_train_step(config, method, model_of(config, network)))

    def moved(**changed):
        scale = {who: jnp.float32(changed.get(who, value)) for who, value in scales.items()}
        average = None if state.average is None else {"scale": scale["average"]}
        start = init_state(config, method, {"scale": scale["student"]})._replace(average=average)
        new, metrics = step(start, jax.random.key(0), Teacher({"scale": scale["teacher"]}, rung), {"image": image})
        return float(new.params["scale"] - scale["student"]), float(metrics["loss"])

    data_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    of_example = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(data_key, i), 3))(jnp.arange(16))
    x = jnp.asarray(image / np.float32(127.5) - 1)
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(of_example[:, 1])
    times = method.times(of_example[:, 2], 0, rung)
    z = q_sample(x, eps, cosine(times.t))

    def denoiser(scale, **kwargs):
        return make_denoiser(lambda z, logsnr: network.apply({"params": {"scale": scale}}, z, logsnr, **kwargs), "v")

    def in_training(scale):
        return denoiser(scale, train=True, index=jnp.arange(16), rngs={"dropout": dropout_key})

    denoisers = Denoisers(denoiser(scales["teacher"]), in_training(scales["student"]), denoiser(scales["average"]))
    target = method.target(denoisers, x, eps, z, times)

    def loss(scale):
        return jnp.mean(method.loss(in_training(scale)(z, cosine(times.t)), target, times))

    found, value = moved()
    expected, gradient = jax.value_and_grad(loss)(scales["student"])
    np.testing.assert_allclose([value, found], [expected, -gradient], rtol=1e-4)
    read = READS.get(name.partition(",")[0], "teacher")
    for who in ("teacher", "average"):
        assert (abs(moved(**{who: scales[who] + 0.3})[1] - value) > 1e-6 * value) == (who in read), who
