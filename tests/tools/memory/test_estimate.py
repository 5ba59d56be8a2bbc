"""The whole estimate: its verdict, its order, what it suggests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from knowledge import gpus, known_models
from tools.memory import architecture, batch, changes, estimate, runtime
from tools.memory.config import ConfigError
from tools.memory.estimate import Server
from tools.memory.runtime import Figure


def run(config: dict[str, Any], **arguments: Any) -> estimate.Estimate:
    return estimate.estimate(architecture.read(config), Server(**arguments))


def known(name: str) -> dict[str, Any]:
    found = known_models.find(name)
    assert found is not None
    return dict(found.config)


def test_parts_add_up_to_the_budget(llama: dict[str, Any]) -> None:
    result = run(llama, gpu="H100", vllm_version="0.21.0", max_model_len=8192)
    assert result.available is not None and result.requested_gib is not None
    used = result.weights.value + result.activations.value + result.non_torch.value + result.counted_graphs.value
    assert result.available.value + used == pytest.approx(result.requested_gib)
    assert result.available.low < result.available.value < result.available.high
    assert result.counted_graphs.value > 0


def test_graphs_are_outside_the_budget_before_0_20(llama: dict[str, Any]) -> None:
    result = run(llama, gpu="H100", vllm_version="0.19.0", max_model_len=8192)
    assert result.counted_graphs.value == 0 < result.graphs.value
    assert result.gpu_memory_utilization == 0.9
    assert run(llama, gpu="H100", vllm_version="0.20.0").gpu_memory_utilization == 0.92
    assert run(llama, gpu="H100", vllm_version="0.21.0", enforce_eager=True).graphs.value == 0


def test_more_of_everything_never_leaves_less(llama: dict[str, Any]) -> None:
    def room(**arguments: Any) -> float:
        result = run(llama, **{"gpu": "RTX 4090", "max_model_len": 8192, "vllm_version": "0.21.0"} | arguments)
        assert result.available is not None
        return result.available.value

    assert room(gpu_memory_utilization=0.8) < room(gpu_memory_utilization=0.9)
    assert room(tensor_parallel_size=1) < room(tensor_parallel_size=2) < room(tensor_parallel_size=4)
    assert room(max_num_batched_tokens=16384) < room(max_num_batched_tokens=2048)
    assert room(max_num_seqs=1024, max_num_batched_tokens=2048) < room(max_num_seqs=64, max_num_batched_tokens=2048)
    assert room() < room(enforce_eager=True) and room() < room(quantization="fp8")
    assert room() < room(cpu_offload_gb=4) and room(max_lora_rank=64, max_loras=4) < room()


@pytest.mark.parametrize(
    ("gpu", "tensor", "verdict"),
    [
        ("H100", 1, "does-not-fit"),
        ("H100", 2, "unsure"),
        ("H100", 4, "fits"),
        ("RTX 4090", 4, "does-not-fit"),
        ("H200", 2, "fits"),
    ],
)
def test_seventy_billion_parameters(gpu: str, tensor: int, verdict: str) -> None:
    # 131.5 GiB of weights: two H100 have 145.7 GiB of budget and one request of 8,192 tokens wants 1.25 GiB on each.
    result = run(
        known("Llama-3.3-70B-Instruct"), gpu=gpu, tensor_parallel_size=tensor, max_model_len=8192, vllm_version="0.21.0"
    )
    assert result.verdict in (verdict, "fits" if verdict == "unsure" else verdict)


def test_fits_is_judged_at_the_pessimistic_end(llama: dict[str, Any]) -> None:
    for length in range(2048, 60_000, 1024):
        result = run(llama, gpu="RTX 4090", max_model_len=length, vllm_version="0.21.0")
        assert result.available is not None
        if result.verdict == "fits":
            assert result.available.low >= result.needed_gib
        if result.verdict == "does-not-fit":
            assert result.available.high < result.needed_gib
    assert run(llama, max_model_len=8192).verdict == "unknown"


def test_the_longest_context_fits_and_a_little_more_does_not_surely(llama: dict[str, Any]) -> None:
    result = run(llama, gpu="RTX 4090", vllm_version="0.21.0")
    longest = result.longest_context
    assert longest
    assert run(llama, gpu="RTX 4090", vllm_version="0.21.0", max_model_len=longest).verdict == "fits"
    assert run(llama, gpu="RTX 4090", vllm_version="0.21.0", max_model_len=longest + 64).verdict != "fits"


def test_every_suggestion_fits_and_they_come_cheapest_first() -> None:
    model = architecture.read(known("Qwen3-8B"))
    server = Server(gpu="RTX 4090", vllm_version="0.21.0")
    found = changes.suggest(model, server)
    assert len(found) >= 4
    for change in found:
        asked = {
            k: f"{v} (online)" if k == "quantization" and "online" not in v else v for k, v in change.arguments.items()
        }
        assert estimate.estimate(model, replace(server, **asked)).verdict == "fits"
    order = [changes.PRICES.index(c.kind) for c in found]
    assert order == sorted(order)
    assert "(" not in " ".join(c.flags for c in found)
    assert changes.suggest(model, replace(server, gpu="H100")) == []


def test_what_no_single_cheap_change_mends_is_mended_by_several() -> None:
    model = architecture.read(known("Qwen2.5-14B-Instruct"))
    found = changes.suggest(
        model, Server(gpu="NVIDIA A40", vllm_version="0.9.0", max_num_seqs=2048, max_num_batched_tokens=32768)
    )
    assert found and all(c.result.verdict == "fits" for c in found)


def test_sizes_and_smallest_gpus() -> None:
    model = architecture.read(known("Qwen3-32B"))
    server = Server(gpu="RTX 4090", vllm_version="0.21.0", max_model_len=8192)
    fits = {f.tensor_parallel_size: f.verdict for f in changes.tensor_parallel_sizes(model, server)}
    assert fits[1] == fits[2] == "does-not-fit" and fits[8] == "fits" and 5 not in fits
    smallest = changes.smallest_gpus(model, server)
    assert [n for n, _, _ in smallest] == [1, 2, 4, 8]
    sizes = [card.total_gib for _, card, _ in smallest]
    assert sizes == sorted(sizes, reverse=True) and all(card.capability >= 8 for _, card, _ in smallest)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tensor_parallel_size": 5}, "does not divide the 32 attention heads"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0"),
        ({"pipeline_parallel_size": 33}, "more than the model's 32 layers"),
        ({"gpu_memory_utilization": 1.2}, "a share above 0"),
        ({"gpu_memory_utilization": float("nan")}, "a share above 0"),
        ({"max_model_len": -1}, "max_model_len is -1"),
        ({"max_model_len": 10**30}, "max_model_len is 1000"),
        ({"gpu": "NVIDIA Q100"}, "No GPU is known"),
        ({"gpu_total_gib": 0.0}, "gpu_total_gib is 0.0"),
        ({"tensor_parallel_size": 4, "decode_context_parallel_size": 3}, "does not divide tensor_parallel_size 4"),
        ({"dtype": "int3"}, "no data type"),
        ({"kv_cache_dtype": "fp7"}, "no data type"),
        ({"cpu_offload_gb": float("inf")}, "cpu_offload_gb"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_words(
    llama: dict[str, Any], arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        run(llama, **arguments)


def test_a_draft_model_costs_weights_and_cache(llama: dict[str, Any]) -> None:
    small = architecture.read(known("Llama-3.2-1B-Instruct"))
    plain = run(llama, gpu="H100", vllm_version="0.21.0")
    drafted = run(llama, gpu="H100", vllm_version="0.21.0", draft_model=small, num_speculative_tokens=3)
    assert drafted.weights.value - plain.weights.value == pytest.approx(2.3, abs=0.1)
    assert drafted.needed_gib > plain.needed_gib
    mtp = run(
        known("DeepSeek-V3"),
        gpu="H200",
        tensor_parallel_size=8,
        num_speculative_tokens=1,
        speculative_method="deepseek_mtp",
    )
    assert 0.5 < mtp.weight_parts["draft"] < 4


def test_pipeline_stages_are_judged_by_the_fullest(llama: dict[str, Any]) -> None:
    result = run(llama, gpu="L4", pipeline_parallel_size=2, vllm_version="0.21.0", max_model_len=8192)
    assert result.weight_parts.get("head") or result.weight_parts.get("embedding")
    assert result.verdict == "fits"


def test_given_bytes_for_the_cache_count_alone(llama: dict[str, Any]) -> None:
    result = run(llama, gpu="H100", vllm_version="0.21.0", kv_cache_memory_bytes=4 * 2**30, max_model_len=8192)
    assert result.tokens is not None and result.tokens.value == result.tokens.low == 32768


def test_bands_add_in_squares() -> None:
    total = Figure(1, 0.7, 1.4) + Figure(2, 1.6, 2.3)
    assert (total.value, total.low, total.high) == pytest.approx((3, 2.5, 3.5))


def test_the_sampler_weighs_less_in_newer_versions() -> None:
    sizes = [runtime.sampler_bytes(v, False)[0] for v in ((0, 8, 5, 0), (0, 12, 0, 0), (0, 19, 0, 0))]
    assert sizes == sorted(sizes, reverse=True)


# The batch of a file of questions


def line(**given: Any) -> dict[str, Any]:
    return batch.answer_line(json.dumps(given))


def test_names_and_ids_change_nothing(llama: dict[str, Any]) -> None:
    asked = {"config": llama, "gpu": "H100", "vllm_version": "0.19.0", "max_model_len": 8192, "tensor_parallel_size": 1}
    for ask in ("tokens_end_to_end", "available_end_to_end", "weights"):
        one = line(id="a", model="x/y", truth={"weights_gib": 1}, source="s", lines=["l"], ask=ask, **asked)
        two = line(id="b", model="other", ask=ask, **asked)
        assert {**one, "id": 0} == {**two, "id": 0}
        assert (
            one["band"][0]
            <= one[{"weights": "weights_gib", "tokens_end_to_end": "kv_cache_tokens"}.get(ask, "available_kv_gib")]
            <= one["band"][1]
        )


def test_each_question_gets_its_field(llama: dict[str, Any]) -> None:
    asked = {"id": 1, "config": llama, "vllm_version": "0.19.0", "max_model_len": 8192}
    assert line(ask="gib_for_tokens", tokens=131072, **asked)["kv_gib"] == 16
    assert line(ask="tokens_from_available", available_kv_gib=16, **asked)["kv_cache_tokens"] == 131072
    assert line(ask="weights", **asked)["weights_gib"] == pytest.approx(14.99, abs=0.01)
    assert "not known" in line(ask="tokens_end_to_end", **asked)["error"]
    assert line(gpu="H100", **asked)["verdict"] == "fits"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[]", "is a JSON list"),
        ("{}", "no 'config'"),
        ('{"id": 3, "config": []}', "no 'config'"),
        ('{"config": {"a": NaN}}', "NaN"),
    ],
)
def test_bad_lines_get_an_answer(text: str, says: str) -> None:
    answer = batch.answer_line(text)
    assert says in answer["error"]


# The cards


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("h100", "NVIDIA H100 80GB"), ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB"), ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 40GB"),
        ("NVIDIA GeForce RTX 4090", "NVIDIA RTX 4090"), ("Tesla T4", "NVIDIA T4"), ("mi300x", "AMD Instinct MI300X"), ("A100 40GB PCIe", "NVIDIA A100 40GB"),
    ],
)  # fmt: skip
def test_cards_are_found_as_people_and_drivers_write_them(said: str, name: str) -> None:
    card = gpus.find(said)
    assert card is not None and card.name == name


def test_no_card_has_more_than_its_data_sheet_says() -> None:
    for card in gpus.load():
        # The sheet's GB of HBM are 2**30 on most, 10**9 on some; nobody gets more than the number in GiB.
        assert 0.85 * card.nominal_gb <= card.total_gib <= card.nominal_gb
    assert gpus.find("nothing such") is None


def test_the_documented_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "memory.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    exec(compile(code, "docs/memory.md", "exec"), {})  # noqa: S102  (our own page)
    assert capsys.readouterr().out.startswith("fits Figure(")
