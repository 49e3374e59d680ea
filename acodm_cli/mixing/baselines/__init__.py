"""The mixers that AC-ODM is compared with, each from its paper; `catalog.py` lists them all by name."""
