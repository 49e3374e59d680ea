from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from acodm_cli.engine.device import Compute
from acodm_cli.engine.memory import StepPlan, estimate_memory
from acodm_cli.engine.models import PRESETS, attend_causally, build_model, model_config
from acodm_cli.engine.norms import NormReader
from acodm_cli.errors import UsageError

# Biderman et al. 2023 (2304.01373), and the model cards of 14m and 31m.
PUBLISHED = {
    "pythia-14m": (50304, 1_189_888),
    "pythia-31m": (50304, 4_739_072),
    "pythia-70m": (50304, 18_915_328),
    "pythia-160m": (50304, 85_056_000),
    "pythia-410m": (50304, 302_311_424),
    "pythia-1b": (50304, 805_736_448),
    "pythia-1.4b": (50304, 1_208_602_624),
    "pythia-2.8b": (50304, 2_517_652_480),
    "pythia-6.9b": (50432, 6_444_163_072),
    "pythia-12b": (50688, 11_327_027_200),
}


def parameter_counts(config: Any) -> tuple[int, int]:
    """The numbers of (all, non-embedding) parameters, without allocating any."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    embeddings = {
        id(part.weight): part.weight.numel() for part in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    return total, total - sum(embeddings.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    vocabulary, non_embedding = PUBLISHED[name]
    config = model_config(name, vocabulary, 1024)
    total, counted = parameter_counts(config)
    assert counted == non_embedding
    assert total == non_embedding + 2 * vocabulary * PRESETS[name].hidden
    assert config.max_position_embeddings == 2048


def test_llama_sizes() -> None:
    assert 0.85e9 < parameter_counts(model_config("llama-0.9b", 32000, 1024))[0] < 0.95e9
    assert 155e6 < parameter_counts(model_config("llama-160m", 50304, 1024))[0] < 170e6


def test_seed_decides_the_weights() -> None:
    config = model_config("pythia-14m", 256, 64)
    first, again, other = (build_model(config, seed, torch.device("cpu")) for seed in (0, 0, 1))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_unknown_models() -> None:
    with pytest.raises(UsageError, match="did you mean pythia-1b"):
        model_config("pythia-1bb", 256, 64)
    with pytest.raises(UsageError, match=r"known: pythia-14m"):
        model_config("gpt5", 256, 64)
    with pytest.raises(UsageError, match="cannot load the configuration"):
        model_config("./no/such/folder", 256, 64)


def test_configuration_from_a_folder(tmp_path: Path) -> None:
    model_config("llama-tiny", 999, 64).save_pretrained(tmp_path)
    config = model_config(str(tmp_path), 256, 4096)
    assert (config.vocab_size, config.max_position_embeddings, config.num_hidden_layers) == (256, 4096, 6)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    """Blocks without nn.Linear, and a mixture of experts: their memory is estimated, and their norms are read."""
    if kind == "gpt2":
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2).save_pretrained(tmp_path)
    else:
        transformers.MixtralConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            num_local_experts=4,
        ).save_pretrained(tmp_path)  # fmt: skip
    config = model_config(str(tmp_path), 256, 64)
    found = estimate_memory(config, StepPlan(4, 64), Compute(torch.device("cpu"), torch.float32))
    assert found.activations > 4 * 64 * 32 * 4
    norms_L, updates_L = NormReader(build_model(config, 0, torch.device("cpu")), (0.0, 1.0)).read()
    assert (norms_L > 0).all()
    assert (updates_L == 0).all()


@pytest.mark.parametrize(
    "content",
    ['{"model_type": "gpt2", "n_embd": 33, "n_head": 2}', '{"model_type": "gpt_neox", "hidden_size": 33}', "{"],
)
def test_a_configuration_of_no_model(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"cannot load the configuration of model \S+: .") as caught:
        model_config(str(tmp_path), 256, 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_names_no_code(name: str, tmp_path: Path) -> None:
    """transformers would fetch such a kernel from the hub and run it."""
    config = model_config("llama-tiny", 256, 64).to_dict() | {name: "kernels-community/flash-attn3"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = build_model(model_config(str(tmp_path), 256, 64), 0, torch.device("cpu"))
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "value"),
    [("transformers_weights", "adapter_model.bin"), ("quantization_config", {"quant_method": "eetq"})],
)
def test_a_configuration_names_no_other_weights(name: str, value: object, tmp_path: Path) -> None:
    config = model_config("llama-tiny", 256, 64).to_dict() | {name: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=f"its config.json has a {name}, which acodm does not follow"):
        model_config(str(tmp_path), 256, 64)


def test_nobody_is_asked_to_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers builds the text model of this one without trust_remote_code, and would ask."""
    (tmp_path / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    text = {
        "model_type": "trocr", "auto_map": {"AutoModel": "modeling_evil.Evil"}, "name_or_path": str(tmp_path),
        "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2,
    }  # fmt: skip
    shape = {"model_type": "fuyu", "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"text_config": text}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    with pytest.raises(UsageError, match="cannot load the configuration"):
        model_config(str(tmp_path), 256, 64)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "changed", "same"),
    [("GPTNeoX", {}, True), ("Llama", {}, True), ("Mistral", {"sliding_window": 64}, True), ("Mistral", {"sliding_window": 16}, False),
     ("GPT2", {}, True), ("Falcon", {}, None)],
)  # fmt: skip
def test_causal_attention_without_masks(kind: str, changed: dict[str, int], same: bool | None) -> None:
    """The output stays what it was, bit for bit, also where windows or an architecture's own ways need the masks."""
    small = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    config = getattr(transformers, f"{kind}Config")(**small, intermediate_size=16, **changed)
    model = build_model(config, 0, torch.device("cpu")).eval()
    tokens_BT = torch.randint(0, 64, (2, 32))
    before_BTV = model(input_ids=tokens_BT).logits
    attend_causally(model, 32)
    assert same is None or (config._attn_implementation != "sdpa") == same  # Falcon's own ways change between releases
    assert torch.equal(model(input_ids=tokens_BT).logits, before_BTV)
    assert not model.training
