"""The mathematics in float64 NumPy and in the form of textbooks, as an oracle for the float32 code."""

import itertools

import numpy as np


def cosine_angle(t, logsnr_min=-20.0, logsnr_max=20.0):
    first, last = np.arctan(np.exp(-0.5 * logsnr_max)), np.arctan(np.exp(-0.5 * logsnr_min))
    return first + (last - first) * np.asarray(t, np.float64)


def nichol_dhariwal_angle(t, s=0.008):
    """The angle of alpha-bar, with beta <= 0.999 over 1000 discrete steps.

    The arccos of alpha loses half of the digits where alpha is close to 1. Instead, sigma^2 = (cos^2 b - cos^2 c) /
    cos^2 b = sin(c - b) sin(c + b) / cos^2 b gives the angle to 1e-15.
    """
    c = lambda t: (np.asarray(t, np.float64) + s) / (1 + s) * np.pi / 2  # noqa: E731
    turned = np.asarray(t, np.float64) / (1 + s) * np.pi / 2
    alpha = np.cos(c(t)) / np.cos(c(0))
    sigma = np.sqrt(np.sin(turned) * np.sin(turned + 2 * c(0))) / np.cos(c(0))
    least = np.sqrt(0.001) * np.cos(c(0.999)) / np.cos(c(0))
    return np.where(alpha > least, np.arctan2(sigma, alpha), np.arccos(least))


def flow_angle(t, shift=1.0):
    """The angle of (1 - t') x + t' eps at the shifted time t' (Esser et al. 2024, section 5.3.2)."""
    t = np.asarray(t, np.float64)
    shifted = shift * t / (1 + (shift - 1) * t)
    return np.arctan2(shifted, 1 - shifted)


def karras_angle(t, sigma_max=80.0, rho=7.0):
    return np.arctan(sigma_max * np.asarray(t, np.float64) ** rho)


def karras_sigmas(num_steps, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """EDM's grid, from sigma_max to sigma_min and then 0 (Karras et al. 2022, equation 5)."""
    i = np.arange(num_steps)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return np.append((first + i / max(num_steps - 1, 1) * (last - first)) ** rho, 0)


def alpha_sigma(angle):
    return np.cos(angle), np.sin(angle)


def logsnr(angle):
    return -2 * np.log(np.tan(angle))


def two_step_target_x(z, v1, v2, t, num_steps, angle):
    """Algorithm 2 of Salimans & Ho: the x whose DDIM step from t to s ends where two steps of the teacher end.

    v1 and v2 are the teacher's predictions at t and half a step later.
    """
    phi_t, phi_mid, phi_s = (angle(t - d)[:, None, None, None] for d in (0, 0.5 / num_steps, 1 / num_steps))
    (a_t, s_t), (a_mid, s_mid), (a_s, s_s) = map(alpha_sigma, (phi_t, phi_mid, phi_s))
    x1, eps1 = a_t * z - s_t * v1, s_t * z + a_t * v1
    z_mid = a_mid * x1 + s_mid * eps1
    x2, eps2 = a_mid * z_mid - s_mid * v2, s_mid * z_mid + a_mid * v2
    z_s = a_s * x2 + s_s * eps2
    ratio = s_s / s_t
    x = (z_s - ratio * z) / (a_s - ratio * a_t)
    return np.where(np.isclose(t * num_steps, 1)[:, None, None, None], x2, x)


def adjusted_step(z, x, phi_t, phi_s, goes_on):
    """Algorithm 3 of Heek et al. (2024): the step of a mean prediction x from t to s. The last step returns x."""
    phi_t, phi_s, goes_on = (np.reshape(a, (-1, 1, 1, 1)) for a in np.broadcast_arrays(phi_t, phi_s, goes_on))
    (a_t, s_t), (a_s, s_s) = map(alpha_sigma, (phi_t, phi_s))
    eps = (z - a_t * x) / s_t
    x_var = 0.1 / (2 + a_t**2 / s_t**2)
    zs_var = (a_s - a_t * s_s / s_t) ** 2 * x_var
    size = eps[0].size / np.sum(eps**2, axis=(1, 2, 3), keepdims=True)
    return np.where(goes_on, a_s * x + np.sqrt(s_s**2 + size * zs_var) * eps, x)


def inverse_step(z_s, z_t, x_s, phi_t, phi_s, goes_on):
    """invDDIM of Heek et al. (2024): the x whose DDIM step from z_t ends at z_s. The last step returns x_s."""
    phi_t, phi_s, goes_on = (np.reshape(a, (-1, 1, 1, 1)) for a in np.broadcast_arrays(phi_t, phi_s, goes_on))
    (a_t, s_t), (a_s, s_s) = map(alpha_sigma, (phi_t, phi_s))
    return np.where(goes_on, (z_s - s_s / s_t * z_t) / (a_s - a_t * s_s / s_t), x_s)


def ddim(denoise, z, angles):
    """DDIM over steps between falling angles; denoise(z, angle) predicts x. Returns z at the last angle, x where 0."""
    for start, end in itertools.pairwise(np.broadcast_arrays(*angles)):
        (a_t, s_t), (a_s, s_s) = (map(_column, alpha_sigma(angle)) for angle in (start, end))
        x = denoise(z, start)
        z = a_s * x + s_s * (z - a_t * x) / s_t
    return z


def addim(denoise, z, angles):
    """As `ddim`, by `adjusted_step`."""
    for start, end in itertools.pairwise(np.broadcast_arrays(*angles)):
        z = adjusted_step(z, denoise(z, start), start, end, end > 0)
    return z


def heun(denoise, z, angles, most=5):
    """As `ddim`, by algorithm 1 of Karras et al. (2022) without churn, in their coordinates.

    A step over more than `most` times the sigma where it ends, if that is large, is an Euler step.
    """
    slope = lambda x, angle: (x - denoise(x * _column(np.cos(angle)), angle)) / _column(np.tan(angle))  # noqa: E731
    x = z / _column(np.cos(angles[0]))
    for start, end in itertools.pairwise(np.broadcast_arrays(*angles)):
        length = np.tan(end) - np.tan(start)
        first = slope(x, start)
        euler = x + _column(length) * first
        averages = (end > 0) & (-length * np.cos(end) <= most)
        second = slope(euler, np.where(end > 0, end, start))
        x = np.where(_column(averages), x + _column(length) * (first + second) / 2, euler)
    return x * _column(np.cos(angles[-1]))


def dpmpp_2m(denoise, z, angles):
    """As `ddim`, by algorithm 2 of Lu et al. (2022): lambda is log(alpha / sigma), h its steps, r = h_before / h."""
    before = None
    for start, end in itertools.pairwise(np.broadcast_arrays(*angles)):
        (a_t, s_t), (a_s, s_s) = alpha_sigma(start), alpha_sigma(end)
        goes_on = end > 0
        x = data = denoise(z, start)
        h = np.log(a_s / np.where(goes_on, s_s, s_t)) - np.log(a_t / s_t)
        if before is not None:
            x_before, h_before = before
            r = h_before / h
            data = (1 + _column(1 / (2 * r))) * x - _column(1 / (2 * r)) * x_before
        z_s = _column(s_s / s_t) * z - _column(a_s * np.expm1(-h)) * data
        z = np.where(_column(goes_on), z_s, x)
        before = x, h
    return z


SOLVERS = {"ddim": ddim, "addim": addim, "heun": heun, "dpmpp_2m": dpmpp_2m}


def _column(a):
    return np.reshape(a, (-1, 1, 1, 1))
