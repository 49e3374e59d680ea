"""Tests. Two of them run at a time (pytest-xdist), each on one thread: on two cores that is faster than one test on two threads."""

import os

if "PYTEST_VERSION" in os.environ:  # not in benchmarks, which live here too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
