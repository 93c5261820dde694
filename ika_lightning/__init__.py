"""Implicit Kernel Attention on PyTorch Lightning: attention layers, four tasks, and a command line."""

__version__ = "0.2.0"
