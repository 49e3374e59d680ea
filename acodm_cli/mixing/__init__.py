"""Mixers, which decide the domain weights of each step."""
