"""The training engine: one loop for proxies and targets, on CPU and GPU.

trainer.py is the loop; read it first. models.py builds, optimizer.py optimises, evaluate.py validates, norms.py reads
what a mixer's state needs, checkpoint.py saves, device.py chooses where.
"""
