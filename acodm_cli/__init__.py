"""acodm: learn pretraining data mixtures on a small model and transfer them to a large one."""

__version__ = "0.1.0"
