"""The user's own command comes back in the form in which the server was started, with the change in it."""

from __future__ import annotations

import ast
import configparser
from collections.abc import Callable

import pytest
import yaml

from assistant.advice.started import Started
from assistant.diagnosis.model import Advice

Fixes = Callable[..., tuple[Advice, ...]]
CAUSE = "memory/kv-cache-below-max-model-len"
FAILURE = (
    "ValueError: To serve at least one request with the models's max seq len (65536), (16.00 GiB KV cache is needed, which is larger "
    "than the available KV cache memory (9.52 GiB). Based on the available memory, the estimated maximum model length is 38992."
)


def first(fixes: tuple[Advice, ...]) -> Advice:
    assert fixes
    return fixes[0]


def command(fixes_of: Fixes, start: str, version: str | None = "0.10.2", *, log: bool = False) -> str:
    fix = first(fixes_of(CAUSE, f"{start}\n\n{FAILURE}", version, log=log))
    assert fix.command is not None
    return fix.command


def test_a_shell_command_keeps_its_order_spelling_and_variables(fixes_of: Fixes) -> None:
    start = "$ NCCL_DEBUG=WARN CUDA_VISIBLE_DEVICES=0,1 nohup vllm serve ~/models/$NAME -tp 2 --max_model_len 65536 --served-model-name 'a b' &"
    assert command(fixes_of, start) == (
        "NCCL_DEBUG=WARN CUDA_VISIBLE_DEVICES=0,1 nohup vllm serve ~/models/\"$NAME\" -tp 2 --max_model_len 38992 --served-model-name 'a b'"
    )


def test_a_module_stays_a_module(fixes_of: Fixes) -> None:
    start = (
        "python3 -u -m vllm.entrypoints.openai.api_server --port 8401 --model /srv/m --max-model-len=65536 --dtype half"
    )
    assert command(fixes_of, start) == (
        "python3 -u -m vllm.entrypoints.openai.api_server --model /srv/m --port 8401 --max-model-len 38992 --dtype half"
    )


def test_a_container_keeps_its_options_and_takes_variables_inside(fixes_of: Fixes) -> None:
    start = (
        "docker run --rm -it --privileged --gpus '\"device=0,1\"' --ipc=host -e HF_TOKEN=hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa -v ~/.cache:/c \\\n"
        "  -p 8000:8000 vllm/vllm-openai:v0.10.2 --model Qwen/Qwen3-32B --max-model-len 65536 --api-key sk-12345678"
    )
    written = command(fixes_of, start)
    assert written == (
        "docker run --rm -it --gpus '\"device=0,1\"' --ipc=host -e HF_TOKEN -v ~/.cache:/c -p 8000:8000 vllm/vllm-openai:v0.10.2 "
        '--model Qwen/Qwen3-32B --max-model-len 38992 --api-key "$VLLM_API_KEY"'
    )
    fix = first(fixes_of(CAUSE, f"{start}\n\n{FAILURE}", "0.10.2"))
    assert any("--privileged" in note for note in fix.notes)
    nccl = fixes_of("distributed/p2p-or-custom-allreduce", start, "0.10.2")
    assert any(f.command and " -e NCCL_P2P_DISABLE=1 vllm/vllm-openai:v0.10.2 --model" in f.command for f in nccl)


COMPOSE = """vLLM 0.10.2 in compose:

services:
  vllm:
    image: vllm/vllm-openai:v0.10.2
    command: >
      --model Qwen/Qwen3-32B
      --max-model-len 65536
      --api-key ${KEY}
"""
KUBERNETES = """vLLM 0.10.2:

kind: Deployment
spec:
      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.10.2
        args:
        - --model=Qwen/Qwen3-32B
        - "--max-model-len"
        - "65536"
        command:
        - vllm
        - serve
        env:
        - name: NCCL_DEBUG
          value: WARN
"""


def test_compose_gets_its_command_as_a_list(fixes_of: Fixes) -> None:
    read = yaml.safe_load(command(fixes_of, COMPOSE))
    assert read == {
        "command": ["--model", "Qwen/Qwen3-32B", "--max-model-len", "38992", "--api-key", "${KEY}"],
    }


def test_kubernetes_gets_command_args_and_env(fixes_of: Fixes) -> None:
    read = yaml.safe_load(command(fixes_of, KUBERNETES))
    assert read == {"command": ["vllm", "serve"], "args": ["Qwen/Qwen3-32B", "--max-model-len", "38992"]}
    fixes = fixes_of("distributed/p2p-or-custom-allreduce", KUBERNETES, "0.10.2")
    texts = [yaml.safe_load(f.command) for f in fixes if f.command and f.command.startswith("env:")]
    assert {"name": "NCCL_P2P_DISABLE", "value": "1"} in texts[0]["env"]


def test_a_unit_gets_a_drop_in(fixes_of: Fixes) -> None:
    start = (
        '[Service]\nExecStart=/opt/v/bin/vllm serve /srv/m --max-model-len 65536 --served-model-name "a b" --port 80%%'
    )
    written = command(fixes_of, start)
    lines = written.split("\n")
    assert lines == ["[Service]", "ExecStart=", 'ExecStart=/opt/v/bin/vllm serve /srv/m --max-model-len 38992 --served-model-name "a b"']  # fmt: skip
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(written)
    assert parser.sections() == ["Service"]


def test_a_script_gets_its_call(fixes_of: Fixes) -> None:
    start = (
        'vLLM 0.10.2\nllm = LLM("Qwen/Qwen3-32B", max_model_len=65536, tensor_parallel_size=1, enforce_eager=True)\n'
    )
    written = command(fixes_of, start)
    parsed = ast.parse(written).body[0]
    assert isinstance(parsed, ast.Assign)
    assert isinstance(parsed.value, ast.Call)
    call = {word.arg: ast.literal_eval(word.value) for word in parsed.value.keywords}
    assert call == {"model": "Qwen/Qwen3-32B", "max_model_len": 38992, "tensor_parallel_size": 1, "enforce_eager": True}


BANNERS = [
    # 0.9 and later: a dictionary with objects of Python's in it
    (
        "0.32.0",
        "(APIServer pid=1) INFO 11-21 02:59:10 [utils.py:328] non-default args: {'model_tag': 'Qwen/Qwen3-32B', 'served_model_name': ['a', 'b'], "
        "'max_model_len': 65536, 'enable_prefix_caching': False, 'speculative_config': {'method': 'mtp', 'num_speculative_tokens': 2}, "
        "'attention_config': AttentionConfig(backend=None, x={'a': 1}), 'lora_modules': [LoRAModulePath(name='s', path='/l/s', x=None)], 'api_key': '***'}",
        "vllm serve Qwen/Qwen3-32B --served-model-name a b --max-model-len 38992 --no-enable-prefix-caching "
        """--speculative-config '{"method": "mtp", "num_speculative_tokens": 2}' --lora-modules s=/l/s --api-key "$VLLM_API_KEY\"""",
    ),
    # before: everything, also what nobody set
    (
        "0.6.3",
        "INFO 10-22 14:36:21 api_server.py:530] args: Namespace(host='0.0.0.0', port=8000, allowed_origins=['*'], api_key=None, model='Qwen/Qwen2-7B', "
        "dtype='auto', max_model_len=65536, swap_space=4, tensor_parallel_size=2, enforce_eager=False, trust_remote_code=True, limit_mm_per_prompt=None)",
        "vllm serve Qwen/Qwen2-7B --host 0.0.0.0 --max-model-len 38992 --tensor-parallel-size 2 --trust-remote-code",
    ),
    # before `vllm serve`
    (
        "0.4.3",
        "INFO 06-09 14:35:15 api_server.py:177] args: Namespace(host=None, port=9000, model='m/x', max_model_len=65536, quantization='awq')",
        "python3 -m vllm.entrypoints.openai.api_server --model m/x --port 9000 --max-model-len 38992 --quantization awq",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("version", "banner", "wanted"), BANNERS)
def test_a_banner_becomes_the_command_that_printed_it(fixes_of: Fixes, version: str, banner: str, wanted: str) -> None:
    head = f"INFO 11-21 02:59:10 [api_server.py:1] vLLM API server version {version}\n"
    assert command(fixes_of, head + banner, version, log=True) == wanted


def test_what_a_version_does_not_know_is_left_out_and_named(fixes_of: Fixes) -> None:
    start = "vllm serve m/x --max-model-len 65536 --swap-space 4 --fooo 3 --dtype float7 --port 8000"
    fix = first(fixes_of(CAUSE, f"{start}\n\n{FAILURE}", "0.32.0"))
    assert fix.command == "vllm serve m/x --max-model-len 38992 --port 8000"
    notes = " ".join(fix.notes)
    assert "--swap-space" in notes
    assert "--fooo" in notes
    assert "--dtype float7" in notes


def test_an_unknown_version_is_one_that_knows_the_arguments(started_of: Callable[..., Started]) -> None:
    started = started_of("vllm serve m/x --swap-space 4 --max-model-len 100", None)
    assert started.assumed
    assert started.version == "0.17.1"
    assert not started.left_out
    assert not started_of("vllm serve m/x --max-model-len 100", None).assumed


def test_talk_about_a_command_is_no_command(started_of: Callable[..., Started]) -> None:
    for text in (
        "vllm serve with Qwen2.5-Omni on an A100 is slow",
        "then vllm serve answers with an error",
        "usage: vllm serve [model_tag] [options]",
        "run vllm serve --help to see",
        "python -m vllm.entrypoints.openai.api_server fails for me",
    ):
        assert not started_of(text).seen, text
    quoted = started_of("`vllm serve mlx-community/Qwen3-8bit --port 11439` on my Mac never becomes ready")
    assert [a.name for a in quoted.arguments] == ["--port"]
    told = started_of("vllm serve zai-org/GLM --kv-cache-dtype fp8 --max-model-len 8192 on an H100, it is slow")
    assert [a.values[0].literal for a in told.arguments] == ["fp8", "8192"]


def test_nothing_is_advised_that_is_in_force_or_the_default(fixes_of: Fixes) -> None:
    eager = fixes_of("engine/cudagraph-replay", "vllm serve m/x --enforce-eager", "0.32.0")
    assert not any("--enforce-eager" in f.flags for f in eager)
    assert any("--enforce-eager is in force already" in note for f in eager for note in f.notes)
    saturated = fixes_of("performance/slow-first-token", "vllm serve m/x", "0.32.0")
    assert not any("--enable-prefix-caching" in f.flags or "--enable-chunked-prefill" in f.flags for f in saturated)
    older = fixes_of("performance/slow-first-token", "vllm serve m/x", "0.6.6")
    assert any("--enable-prefix-caching" in f.flags for f in older)
    reset = fixes_of("model/dtype-unsupported", "vllm serve m/x --dtype bfloat16", "0.32.0")
    assert any(f.command == "vllm serve m/x --dtype auto" for f in reset)
    assert not any(
        "--dtype auto" in (f.command or "") for f in fixes_of("model/dtype-unsupported", "vllm serve m/x -tp 2")
    )


def test_what_contradicts_is_taken_out_and_said(fixes_of: Fixes) -> None:
    fixes = fixes_of(
        "memory/no-room-for-kv-cache", "vllm serve m/x --gpu-memory-utilization 0.5 --num-gpu-blocks-override 40"
    )
    raised = next(f for f in fixes if "--gpu-memory-utilization" in f.flags)
    assert raised.command == "vllm serve m/x --gpu-memory-utilization 0.55"
    assert any("--num-gpu-blocks-override is taken out" in note for note in raised.notes)
    assert raised.undo is not None
    assert "--num-gpu-blocks-override 40" in raised.undo


def test_removals_take_out_only_what_is_there(fixes_of: Fixes) -> None:
    start = "CUDA_LAUNCH_BLOCKING=1 vllm serve m/x --enforce-eager --port 8000"
    fixes = fixes_of("performance/debug-settings-left-on", start)
    assert any(f.command == "vllm serve m/x --enforce-eager --port 8000" for f in fixes)
    assert any(f.command == "CUDA_LAUNCH_BLOCKING=1 vllm serve m/x --port 8000" for f in fixes)
    for fix in fixes_of("performance/debug-settings-left-on", "it is slow, maybe CUDA_LAUNCH_BLOCKING"):
        assert fix.command is None


def test_what_vllm_wants_together_comes_together(fixes_of: Fixes) -> None:
    fixes = fixes_of("serving/tool-calling-not-enabled", "vllm serve Qwen/Qwen2.5-7B-Instruct")
    assert fixes[0].command == "vllm serve Qwen/Qwen2.5-7B-Instruct --enable-auto-tool-choice --tool-call-parser hermes"
    assert len([f for f in fixes if f.command]) == 1  # the same pair is not offered twice
    unknown = fixes_of("serving/tool-calling-not-enabled", "vllm serve my/own-model")
    assert (
        unknown[0].command == 'vllm serve my/own-model --enable-auto-tool-choice --tool-call-parser "$TOOL_CALL_PARSER"'
    )


def test_debug_settings_are_called_out(fixes_of: Fixes, engine: object, facts_of: Callable[..., object]) -> None:
    from assistant.diagnosis.gather import read_case

    catalog = engine.catalog  # type: ignore[attr-defined]
    text = f"NCCL_DEBUG=INFO VLLM_LOGGING_LEVEL=DEBUG vllm serve m/x --enforce-eager --max-model-len 65536\n\n{FAILURE}"
    case, _ = read_case(catalog, text=text)
    notes = " ".join(engine.diagnose(case).notes)  # type: ignore[attr-defined]
    assert "NCCL_DEBUG=INFO" in notes
    assert "VLLM_LOGGING_LEVEL=DEBUG" in notes
    assert "--enforce-eager" in notes
    case, _ = read_case(
        catalog, text=f"vllm serve m/x\n\nunhandled system error (run with NCCL_DEBUG=INFO for details)\n{FAILURE}"
    )
    assert not any("NCCL_DEBUG" in note for note in engine.diagnose(case).notes)  # type: ignore[attr-defined]


def test_a_refused_command_comes_back_in_the_words_of_its_version(fixes_of: Fixes) -> None:
    start = (
        "vllm serve m/x --guided-decoding-backend xgrammar --fooo 1 2 --cuda-graph-sizes 1 2 4 --max-model-len 8192\n\n"
        "vllm serve: error: unrecognized arguments: --guided-decoding-backend xgrammar"
    )
    fix = first(fixes_of("install/unknown-argument", start, "0.13.0"))
    assert fix.command == (
        "vllm serve m/x --structured-outputs-config.backend xgrammar --cudagraph-capture-sizes 1 2 4 --max-model-len 8192"
    )
    assert any("--fooo" in note for note in fix.notes)
    assert any("--guided-decoding-backend is called --structured-outputs-config.backend" in note for note in fix.notes)


def test_a_pipeline_takes_the_place_of_what_does_not_divide(fixes_of: Fixes) -> None:
    start = "vllm serve m/x --tensor-parallel-size 3\n\nValueError: Total number of attention heads (64) must be divisible by tensor parallel size (3)."
    commands = [f.command for f in fixes_of("model/tp-indivisible", start, "0.32.0")]
    assert "vllm serve m/x --tensor-parallel-size 2" in commands
    assert "vllm serve m/x --pipeline-parallel-size 3" in commands
