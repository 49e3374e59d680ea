"""Mixers: what decides the domain weights of each step."""
