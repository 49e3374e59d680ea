"""Schedules in the syntax of other trainers, and what those trainers will realise of them."""
