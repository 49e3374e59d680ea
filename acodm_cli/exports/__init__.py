"""Schedules in the syntax of other trainers, and the shares that those trainers will realise."""
