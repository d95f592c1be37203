"""Packaging; the requirements' lower bounds are versions that the tests passed with."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="diffusion_distillation",
    version="0.1.0",
    description="Progressive distillation of diffusion models in JAX and Flax: 1024 sampling steps become 4, 2, 1.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["diffusion_distillation", "diffusion_distillation.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "flax",
        "jax",
        "jaxlib",
        "jaxtyping",
        "matplotlib",
        "ml_collections",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "pillow",
        "scikit-learn",
        "scipy",
    ],
    extras_require={"test": ["beartype", "hypothesis", "pytest", "ruff"]},
)
