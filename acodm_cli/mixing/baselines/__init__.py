"""The mixers that AC-ODM is compared with, each from its paper; `catalog` knows them all by name."""
