"""Packaging; the requirements' lower bounds are versions that the tests passed with."""

from setuptools import find_packages, setup

setup(
    name="diffusion_distillation",
    version="0.1.0",
    description="Progressive distillation of diffusion models in JAX and Flax: 1024 sampling steps become 4, 2, 1.",
    long_description=open("README.md", encoding="utf-8").read(),
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
