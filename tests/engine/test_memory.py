"""What a run is predicted to take, against the bytes of its tensors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

WAYS = (("ddp", "whole"), ("fsdp", "whole"), ("fsdp", "sharded"))


@pytest.mark.slow
def test_prediction_on_two_ranks() -> None:
    """With four micro-batches per rank. One launch, because starting takes longer than counting. On a busy machine, gloo's threads give
    their copies back late, so that what is counted of fsdp may be too much."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine.rank_memory", json.dumps(WAYS)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said, _ = (rank.communicate()[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    found = dict(zip(WAYS, (json.loads(line) for line in said.splitlines() if line.startswith("{")), strict=True))
    ratios = {way: bytes_["predicted"] / bytes_["counted"] for way, bytes_ in found.items()}
    assert all(ratio < 1.15 for ratio in ratios.values()), ratios
    assert ratios["ddp", "whole"] > 0.85
    predicted = [found[way]["predicted"] for way in reversed(WAYS)]
    assert predicted == sorted(set(predicted))
