"""The commands, one module for each.

train.py has what the two training commands share, launch.py starts ranks, and options.py makes options of settings.
"""
