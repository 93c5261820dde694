"""What pytest leaves out: examples of modules whose optional dependency is not installed, and files of fixtures."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("transformers") else ["ika_lightning/attention/huggingface.py"]

# Files of fixtures are no modules with examples; two of one name could not both be imported as such.
collect_ignore_glob = ["tests/conftest.py", "tests/*/conftest.py"]
