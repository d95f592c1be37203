"""Draw the pictures of docs/concepts.md with the functions of the package.

    python docs/figures.py

docs/rotation.png has the plane of x and eps, in which a DDIM step turns z; and, for images of two pixels, two teacher
steps and the one student step that replaces them. docs/ladder.png has the steps of each student of an 8-step teacher.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_distillation.diffusion import alpha_sigma, make_denoiser
from diffusion_distillation.distillation import two_step_target
from diffusion_distillation.sampling import ddim_step
from diffusion_distillation.schedules import get_logsnr_schedule

FOLDER = Path(__file__).parent
TEACHER = "#2f6f73"
STUDENT = "#d1495b"
DARK = "#1b1f24"
MUTED = "#8a8f98"
SCHEDULE = get_logsnr_schedule("cosine")
DATA = np.array([[1.6, 0.5], [-1.4, -0.7]], np.float32)  # a dataset of two images of two pixels


def main(folder: Path = FOLDER) -> None:
    """Draw both pictures into a folder."""
    figure = Figure(figsize=(9, 4.3), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_circle(left)
    draw_two_steps(right)
    figure.savefig(folder / "rotation.png", metadata={"Software": None})
    figure = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    draw_ladder(figure.subplots())
    figure.savefig(folder / "ladder.png", metadata={"Software": None})


def draw_circle(axes: Axes) -> None:
    """Draw x, eps, z and v, and a DDIM step, which turns z towards x."""
    phi, d = 1.05, 0.45
    angles = np.linspace(0, np.pi / 2, 100)
    axes.plot(np.cos(angles), np.sin(angles), color=MUTED, lw=1)
    z, v = np.array([np.cos(phi), np.sin(phi)]), np.array([-np.sin(phi), np.cos(phi)])
    turned = np.cos(d) * z - np.sin(d) * v
    for end, name, place in (((1, 0), "x", (1.04, 0.03)), ((0, 1), "eps", (-0.04, 1.05))):
        arrow(axes, (0, 0), end, DARK)
        axes.text(*place, name, color=DARK, ha="center" if name == "eps" else "left")
    arrow(axes, (0, 0), z, TEACHER)
    axes.text(*(1.05 * z), "z", color=TEACHER, ha="center", va="bottom")
    arrow(axes, z, z + 0.45 * v, TEACHER)
    axes.text(*(z + 0.5 * v), "v", color=TEACHER, ha="right", va="center")
    arrow(axes, (0, 0), turned, STUDENT)
    axes.text(*(1.04 * turned), "cos(d) z - sin(d) v", color=STUDENT)
    for part, text, place in (((z[0], 0), "alpha", (z[0] / 2, -0.07)), ((0, z[1]), "sigma", (-0.14, z[1] / 2))):
        axes.plot([z[0], part[0]], [z[1], part[1]], color=MUTED, lw=1, ls=":")
        axes.text(*place, text, color=MUTED, ha="center", va="center")
    arc(axes, 0.25, 0, phi - d, MUTED)
    arc(axes, 0.33, phi - d, phi, STUDENT)
    axes.text(0.38 * np.cos(phi - d / 2), 0.38 * np.sin(phi - d / 2), "d", color=STUDENT, ha="left", va="bottom")
    axes.text(0.28, 0.08, "phi - d", color=MUTED, fontsize=9)
    axes.set(xlim=(-0.5, 1.5), ylim=(-0.15, 1.25), aspect="equal", title="A DDIM step turns z by an angle d")
    axes.axis("off")


def draw_two_steps(axes: Axes) -> None:
    """Draw two teacher steps and the student step that replaces them, as arcs in the plane of two pixels."""
    denoise = make_denoiser(perfect_network, "x")
    steps = 1  # of the student
    z = as_images(np.array([[-0.5, 1.5]]))
    t = jnp.float32(1.0)
    half = jnp.float32(0.5 / steps)
    first = denoise(z, SCHEDULE(t))
    middle = ddim_step(first, z, SCHEDULE, t, half)
    second = denoise(middle, SCHEDULE(t - half))
    end = ddim_step(second, middle, SCHEDULE, t - half, half)
    target = two_step_target(denoise, z, jnp.array([steps - 1]), steps, SCHEDULE)
    assert np.allclose(ddim_step(target, z, SCHEDULE, t, 2 * half), end, atol=1e-5)

    path(axes, first, z, t, half, TEACHER, "two teacher steps")
    path(axes, second, middle, t - half, half, TEACHER)
    path(axes, target, z, t, 2 * half, STUDENT, "one student step")
    for at, name, offset in ((z, "z", (-8, 5)), (middle, "halfway", (-8, -4)), (end, "where both end", (10, -4))):
        axes.plot(*pixels(at), "o", ms=5, color=DARK)
        axes.annotate(name, pixels(at), offset, textcoords="offset points", ha="left" if at is end else "right")
    axes.plot(*DATA.T, "s", color=MUTED, ms=7, label="the data: two images")
    for prediction, color, name in ((first, TEACHER, "teacher's x, at z"), (target, STUDENT, "the target x, at z")):
        axes.plot(*pixels(prediction.x), "x", color=color, ms=8, mew=2, label=name)
    axes.set(aspect="equal", xlim=(-1.8, 2.4), ylim=(-1.1, 2.3), xlabel="first pixel", ylabel="second pixel")
    axes.set_title("Two steps, and the one that replaces them")
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_ladder(axes: Axes) -> None:
    """Draw the steps of each student, from noise on the left to the image on the right."""
    ladder = (8, 4, 2, 1)
    for row, num_steps in enumerate(ladder):
        color = STUDENT if row else TEACHER
        for i in range(num_steps):
            x = np.linspace(i / num_steps, (i + 1) / num_steps, 40)
            height = 0.62 * np.sin(np.pi * (x - x[0]) * num_steps) * num_steps**-0.35
            axes.plot(x, -row + height, color=color, lw=1.6)
        axes.plot(np.arange(num_steps + 1) / num_steps, [-row] * (num_steps + 1), "o", ms=4, color=DARK)
        who = "teacher" if row == 0 else "student"
        axes.text(-0.03, -row, f"{who}, {num_steps} step{'s'[: num_steps > 1]}", ha="right", va="center", color=color)
    axes.text(0, -3.42, "noise, t = 1", ha="center", va="top", color=MUTED)
    axes.text(1, -3.42, "image, t = 0", ha="center", va="top", color=MUTED)
    axes.set(xlim=(-0.22, 1.08), ylim=(-3.8, 0.5))
    axes.axis("off")


def perfect_network(z: jax.Array, logsnr: jax.Array) -> jax.Array:
    """The x that a perfect network predicts: the mean of the data given z."""
    alpha, sigma = alpha_sigma(logsnr)
    data = as_images(DATA)
    distance = jnp.sum((z[:, None] - alpha * data) ** 2, axis=(2, 3, 4)) / (2 * sigma**2)
    return jnp.einsum("zd,d...->z...", jax.nn.softmax(-distance, axis=1), data)


def path(axes, prediction, z, t, dt, color, label=None) -> None:
    """Draw the arc cos(s) z - sin(s) v of a step, with its direction."""
    s = np.linspace(0, float(SCHEDULE.angle_step(t, dt)), 60)
    arc = np.cos(s)[:, None] * pixels(z) - np.sin(s)[:, None] * pixels(prediction.v)
    axes.plot(*arc.T, color=color, lw=1.8, label=label)
    axes.annotate("", arc[32], arc[28], arrowprops=dict(arrowstyle="->", color=color, lw=1.8))


def arrow(axes, start, end, color) -> None:
    """Draw a vector."""
    axes.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=color, lw=1.6, shrinkA=0, shrinkB=0))


def arc(axes, radius, start, end, color) -> None:
    """Draw an angle."""
    angles = np.linspace(start, end, 40)
    axes.plot(radius * np.cos(angles), radius * np.sin(angles), color=color, lw=1.2)


def as_images(points: np.ndarray) -> jax.Array:
    """Points `[n, 2]` as images of two pixels."""
    return jnp.asarray(points, jnp.float32).reshape(-1, 1, 2, 1)


def pixels(image: jax.Array) -> np.ndarray:
    """The two pixels of an image."""
    return np.asarray(image).reshape(2)


if __name__ == "__main__":
    main()
