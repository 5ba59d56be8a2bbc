"""Parameters counted from the architecture, against what the hub states for the checkpoints."""

from __future__ import annotations

import pytest

from knowledge import known_models
from tools.memory import architecture, shapes, weights

MODELS = known_models.all_models()
#: Towers whose configuration leaves parts out (Pixtral's and InternViT's extra layers, Llama 4's vision adapter).
LOOSE = {"Llama4ForConditionalGeneration", "Mistral3ForConditionalGeneration", "InternVLForConditionalGeneration"}


def test_there_are_sixty_models_or_more() -> None:
    assert len(MODELS) >= 60


@pytest.mark.parametrize("known", [m for m in MODELS if m.parameters], ids=lambda m: m.model)
def test_counted_parameters_are_those_of_the_checkpoint(known: known_models.KnownModel) -> None:
    model = architecture.read(known.config)
    counted = shapes.count(model)
    assert known.parameters is not None
    if model.is_multimodal:
        counted += weights.tower_parameters(model)
        assert counted == pytest.approx(known.parameters, rel=0.006 if model.architecture in LOOSE else 0.001)
    else:
        # What is left are norms of heads and other vectors.
        assert counted == pytest.approx(known.parameters, rel=0.0002)


@pytest.mark.parametrize("known", MODELS, ids=lambda m: m.model)
def test_every_known_model_is_of_a_known_architecture(known: known_models.KnownModel) -> None:
    assert architecture.read(known.config).known


def test_names_find_models_without_owner_case_or_marks() -> None:
    for name in ("Qwen/Qwen3-8B", "qwen3-8b", "Qwen3 8B"):
        found = known_models.find(name)
        assert found is not None and found.model == "Qwen/Qwen3-8B"
    assert known_models.find("Qwen3-9B") is None
    assert "Qwen/Qwen3-8B" in known_models.near("Qwen3-9B")


def test_a_quantized_checkpoint_is_its_model_with_a_method() -> None:
    found = known_models.find_quantized("someone/Qwen2.5-72B-Instruct-AWQ")
    assert found is not None
    assert (found[0].model, found[1]) == ("Qwen/Qwen2.5-72B-Instruct", "awq")
    assert known_models.find_quantized("someone/Qwen2.5-72B-Instruct") is None


def test_how_makers_quantize_is_known_by_shape_and_method() -> None:
    thinking = known_models.find("moonshotai/Kimi-K2-Thinking")
    assert thinking is not None
    plain = {k: v for k, v in thinking.config.items() if k != "quantization_config"}
    found = known_models.shipped_quantization(plain, "compressed-tensors int4")
    assert found is not None and found["config_groups"]["group_0"]["weights"]["group_size"] == 32
    assert known_models.shipped_quantization(plain, "awq") is None
    assert known_models.shipped_quantization({**plain, "hidden_size": 7169}, "compressed-tensors") is None
    assert known_models.shipped_quantization({**plain, "hidden_size": [1]}, "compressed-tensors") is None
