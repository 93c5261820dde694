"""What pytest leaves out: examples of modules whose optional dependency is not installed, and files of fixtures."""

from importlib.util import find_spec

_OPTIONAL = {
    "optuna": "ika_lightning/study",
    "transformers": "ika_lightning/attention/huggingface.py",
    "triton": "ika_lightning/attention/backends/fused_kernels.py",
}
collect_ignore = [file for package, file in _OPTIONAL.items() if not find_spec(package)]

# Files of fixtures are no modules with examples; two of one name could not both be imported as such.
collect_ignore_glob = ["tests/conftest.py", "tests/*/conftest.py"]
