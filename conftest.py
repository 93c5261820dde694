"""What pytest leaves out: examples of modules whose optional dependency is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("transformers") else ["ika_lightning/attention/huggingface.py"]
