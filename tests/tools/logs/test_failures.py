"""Failures: which lines count, in which process, and which only look like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

E = "(EngineCore_DP0 pid=387) ERROR 06-10 21:32:17 [core.py:700] "
START = "(APIServer pid=1) INFO 06-10 21:32:00 [utils.py:328] non-default args: {'model': '/srv/m', 'max_model_len': 4096}\n"
READY = "INFO:     Application startup complete.\n"
OOM = (
    f"{E}EngineCore failed to start.\n"
    f"{E}Traceback (most recent call last):\n"
    f'{E}  File "/opt/venv/vllm/v1/worker/gpu_worker.py", line 88, in profile_run\n'
    f"{E}    self.model_runner.profile_run()\n"
    f"{E}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has\n"
)
WRAPPER = (
    "Traceback (most recent call last):\n"
    '  File "/opt/venv/bin/vllm", line 8, in <module>\n'
    "    sys.exit(main())\n"
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
)
Reader = Callable[..., Any]


def test_a_failed_start(read: Reader) -> None:
    found = read(START + OOM + WRAPPER)
    assert found.value("log.coverage") == "start-to-exit"
    assert found.value("log.ended") == "failed"
    assert found.value("log.failures") == 2
    assert found.value("memory.tried_gib") == 0.875
    assert found.first("message:torch-cuda-oom").origin.process == "EngineCore_DP0 pid=387"
    assert found.first("message:torch-cuda-oom").origin.line == 6
    assert found.first("message:frame-profile-run").origin.process == "EngineCore_DP0 pid=387"
    assert found.first("message:engine-core-init-failed").origin.process == "APIServer pid=1"
    assert (
        found.first("message:torch-cuda-oom").origin.order < found.first("message:engine-core-init-failed").origin.order
    )
    assert not found.all("log.unrecognised")
    assert found.first("log.exception").value == "torch.OutOfMemoryError"


def test_an_unknown_exception_is_an_unrecognised_failure(read: Reader) -> None:
    found = read(START + WRAPPER.replace("Engine core initialization failed. See root cause above.", "no idea"))
    assert found.value("log.failures") == 1
    assert found.value("log.unrecognised").startswith("RuntimeError: no idea")


def test_an_excerpt_with_one_exception_line(read: Reader) -> None:
    found = read("ValueError: the moon is in the wrong phase\n")
    assert found.value("log.coverage") == "fragment"
    assert found.value("log.unrecognised") == "ValueError: the moon is in the wrong phase"
    assert found.value("log.exception") == "ValueError"


def test_an_exception_inside_a_sentence(read: Reader) -> None:
    found = read("It dies with RuntimeError: something odd, what now?", pasted=True)
    assert found.value("log.exception") == "RuntimeError"
    assert found.value("log.coverage") == "fragment"


def test_a_record_of_many_lines_counts_once(read: Reader) -> None:
    lines = "".join(f"{E}{text}\n" for text in ("Cannot do it", "", "because of this", "and that"))
    found = read(START + lines)
    assert found.value("log.failures") == 1
    assert found.value("log.unrecognised").endswith("Cannot do it")


def test_a_harmless_line_that_quotes_a_failure(read: Reader) -> None:
    line = (
        "(APIServer pid=1) WARNING 06-10 21:32:01 [utils.py:255] Found ulimit of 1024 and failed to automatically increase "
        "with error x. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.\n"
    )
    found = read(START + line + READY)
    assert found.value("log.failures") == 0
    assert "too-many-files" not in found.messages
    assert found.value("log.coverage") == "through-ready"


def test_what_a_user_wrote_is_no_failure(read: Reader) -> None:
    line = (
        "INFO 06-10 21:33:00 [logger.py:40] Received request cmpl-1: prompt: 'Why CUDA out of memory. Tried to allocate "
        "2.00 GiB? Traceback (most recent call last) ValueError: x', params: None\n"
    )
    found = read(START + READY + line)
    assert found.value("log.failures") == 0
    assert not found.all("memory.tried_gib")
    assert not found.reading.failures


def test_the_configuration_that_a_dying_engine_dumps_is_no_failure_of_its_own(read: Reader) -> None:
    p = "(EngineCore pid=2) ERROR 06-10 21:33:00"
    text = (
        f"{p} [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor.\n"
        f"{p} [dump_input.py:72] Dumping input data for V1 LLM engine (v0.32.0) with config: model='/m', tokenizer='/m', "
        "served_model_name=Too many open files, dtype=torch.bfloat16, max_seq_len=1024\n"
    )
    found = read(START + READY + text)
    assert "worker-died" in found.messages and "too-many-files" not in found.messages


def test_requests_refused_with_a_traceback(read: Reader) -> None:
    p = "(APIServer pid=1) ERROR 06-10 21:33:00 [serving_chat.py:267] "
    text = (
        f"{p}Error in preprocessing prompt inputs\n{p}Traceback (most recent call last):\n"
        f'{p}  File "/opt/venv/vllm/entrypoints/openai/serving_chat.py", line 200, in create_chat_completion\n'
        f"{p}ValueError: unhappy template\n"
        'INFO:     192.0.2.4:1 - "POST /v1/chat/completions HTTP/1.1" 400 Bad Request\n'
        f"{p}This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.\n"
    )
    found = read(START + READY + text)
    assert found.value("log.failures") == 0
    assert (found.value("requests.total"), found.value("requests.refused")) == (1, 1)
    assert "context-exceeded" in found.messages


def test_clients_that_go_away(read: Reader) -> None:
    text = (
        "INFO 06-10 21:33:00 [async_llm.py:420] Aborted request cmpl-77.\n"
        "ERROR:    Exception in ASGI application\n"
        "Traceback (most recent call last):\n"
        '  File "/opt/venv/starlette/responses.py", line 265, in wrap\n'
        "    await func()\n"
        "asyncio.exceptions.CancelledError\n"
        'INFO:     192.0.2.4:1 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    )
    assert read(START + READY + text).value("log.failures") == 0


def test_an_orderly_shutdown(read: Reader) -> None:
    text = (
        "(APIServer pid=1) INFO 06-10 21:40:00 [launcher.py:254] [shutdown] API server: shutdown triggered\n"
        "(EngineCore_DP0 pid=387) ERROR 06-10 21:40:01 [core.py:1] Worker proc VllmWorker-0 died unexpectedly, shutting down.\n"
        "(APIServer pid=1) ERROR 06-10 21:40:01 [async_llm.py:1] output handler left\n"
        "INFO:     Shutting down\nINFO:     Application shutdown complete.\nINFO:     Finished server process [1]\n"
        "/usr/lib/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 2 "
        "leaked shared_memory objects to clean up at shutdown\n"
    )
    found = read(START + READY + text)
    assert found.value("log.failures") == 0
    assert found.value("log.ended") == "clean-shutdown"
    assert found.value("log.stage") == "stopped"
    assert "worker-died" not in found.messages


def test_ctrl_c(read: Reader) -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "/opt/venv/bin/vllm", line 8, in <module>\n'
        "KeyboardInterrupt\n"
        "[rank0]:[W610 21:32:17.1 ProcessGroupNCCL.cpp:1496] Warning: WARNING: destroy_process_group() was not called\n"
    )
    found = read(START + READY + text)
    assert found.value("log.failures") == 0
    assert found.value("log.ended") == "clean-shutdown"


def test_an_engine_that_dies_while_serving(read: Reader) -> None:
    text = (
        "(EngineCore_DP0 pid=387) ERROR 06-10 21:40:01 [m.py:1] Worker proc VllmWorker-0 died unexpectedly (exit code: -9), x.\n"
        'INFO:     192.0.2.4:1 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error\n'
        "INFO:     Shutting down\nINFO:     Application shutdown complete.\n"
    )
    found = read(START + READY + text)
    assert found.value("log.ended") == "failed"
    assert found.value("process.exit_code") == -9
    assert found.value("requests.failed") == 1
    assert found.value("log.failures") == 1


def test_a_failure_that_was_survived_does_not_end_the_run(read: Reader) -> None:
    text = "(APIServer pid=1) ERROR 06-10 21:33:00 [tool.py:1] Error in extracting tool call\n" + "x\n" * 1000
    stop = "INFO:     Shutting down\nINFO:     Application shutdown complete.\n"
    assert read(START + READY + text).value("log.ended") == "open"
    assert read(START + READY + text + stop).value("log.ended") == "clean-shutdown"


def test_death_without_a_word(read: Reader) -> None:
    for line in ("Killed\n", "./run.sh: line 3: 812 Segmentation fault      (core dumped) vllm serve m\n"):
        found = read(START + line)
        assert found.value("log.failures") == 1, line
        assert found.value("log.ended") == "failed"


def test_nccl_and_kernel_lines(read: Reader) -> None:
    text = (
        "(Worker_TP0 pid=812) INFO 06-10 21:32:01 [a.py:1] x\n"
        "gpu07:812:990 [0] misc/socket.cc:50 NCCL WARN socketStartConnect: Connect to 192.0.2.9<4711> failed\n"
        "[12345.678901] NVRM: Xid (PCI:0000:3b:00): 79, pid=812, GPU has fallen off the bus.\n"
    )
    found = read(START + text)
    assert found.value("gpu.xid") == 79
    assert found.first("log.unrecognised").origin.process == "Worker_TP0 pid=812"
    assert found.reading.reading.coverage[0].kernel_lines


def test_a_wrong_argument(read: Reader) -> None:
    found = read("usage: vllm [-h] [-v]\nvllm: error: unrecognized arguments: --frobnicate\n")
    assert found.value("log.coverage") == "start-to-exit"
    assert found.value("log.failures") == 1
    assert "unrecognized arguments" in found.value("log.unrecognised")


def test_secrets_do_not_leave(read: Reader) -> None:
    token = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz" + "01234567"
    line = START.replace("'max_model_len': 4096", f"'api_key': ['{token}'], 'hf_token': '{token}'")
    found = read(line + f"ValueError: bad token {token}\n")
    assert token not in repr(found.reading)
    assert found.value("argument.api_key") == "given"
