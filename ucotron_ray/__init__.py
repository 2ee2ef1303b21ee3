"""Training data, fine-tuning and production of relation extraction models for Ucotron, on Ray."""

__version__ = "0.1.0"
