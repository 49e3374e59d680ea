"""The training engine: one loop for proxies and targets, on CPU and GPU.

trainer.py is the loop; read it first. models.py builds the model, loss.py computes its loss, optimizer.py makes the
optimiser, evaluate.py validates, norms.py reads what a mixer's state needs, device.py chooses where to compute,
distributed.py joins the ranks, and memory.py and estimate.py say how much memory and time a run takes.
"""
