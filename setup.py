"""Package definition of tfppo: dependencies, extras and metadata. Tool settings: pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).resolve().parent / "README.md"

TENSORFLOW_RANGE = ">=2.21,<2.22"

INSTALL_REQUIRES = [
    f"tensorflow{TENSORFLOW_RANGE}",
    "keras>=3.15.1,<3.16",
    "keras-hub>=0.32,<0.33",
    "tensorflow-text>=2.21.1,<2.22",
    "tensorflow-datasets>=4.9.10,<4.10",
    "importlib_resources",  # tensorflow-datasets imports it, but declares it for Python < 3.9 only
    f"tensorboard{TENSORFLOW_RANGE}",
    "absl-py>=2.1",
    "ml-collections>=1.1,<2",
    "numpy",
    "requests>=2.32,<3",  # TensorFlow needs it, too; rewards at a URL
    "tokenizers>=0.21",
    "vaderSentiment==3.3.2",  # exact: its lexicon is the default reward, so it fixes the scores
    "tqdm",
    "matplotlib",
]

TEST_REQUIRES = ["pytest>=8", "pytest-xdist>=3.6", "dill", "setuptools>=64", "wheel"]

EXTRAS_REQUIRE = {
    "test": TEST_REQUIRES,
    # The ranges of ruff (also in .ci/run and pyproject.toml), mypy and clang-format (also in .ci/run and
    # tools/check_native.py): another version formats differently, or finds other errors.
    "dev": [*TEST_REQUIRES, "ruff>=0.17,<0.18", "mypy>=2.4,<2.5", "clang-format>=23,<24", "pre-commit", "build"],
    "parquet": ["pyarrow"],  # reads .parquet files
    "gpu": [f"tensorflow[and-cuda]{TENSORFLOW_RANGE}"],
}

setup(
    name="tfppo",
    version="0.1.0",
    description="PPO fine-tuning of Transformer language models in TensorFlow and Keras",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # The wheel has the configs within the package; in a checkout they are beside it, where a reader finds them.
    packages=[*find_packages(include=["tfppo", "tfppo.*"]), "tfppo.configs"],
    package_dir={"tfppo.configs": "configs"},
    entry_points={"console_scripts": ["tfppo = tfppo.commands.main:main"]},
    package_data={"tfppo.computation.native": ["*.cc", "*.h"]},
    python_requires=">=3.11",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
