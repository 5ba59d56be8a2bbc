"""What somebody says it is not counts for nothing; a lack that is the symptom stays."""

from __future__ import annotations

import pytest

from knowledge.excluded import remaining, without_setup
from knowledge.text import normalise


@pytest.mark.parametrize(
    ("said", "rest"),
    [
        ("it hangs, no oom in dmesg, and nvidia-smi looks fine", "it hangs,"),
        ("requests fail. there are no ECC errors, the disk is not full, nccl tests pass", "requests fail."),
        ("not a memory problem, still it dies", "still it dies"),
        ("after I fixed the NCCL problem requests are rejected", "requests are rejected"),
        ("the disk was full last month, fixed. now it is slow", "now it is slow"),
        ("we ruled out the network, it is slow", "it is slow"),
        ("服务变慢,没有降频,显存够用,nccl test通过了", "服务变慢,"),
        ("不是显存问题,起不来", "起不来"),
        ("排除了网络问题,还是超时", "还是超时"),
        ("修好NCCL之后又起不来", "又起不来"),
        ("磁盘满过,已经清理了,现在报错", "现在报错"),
        ("oom已经解决了,现在是别的报错", "现在是别的报错"),
        ("what happens when a gpu dies? ours are fine.", "ours are fine."),
        ("掉卡了会怎样", ""),
        ("it is slow. ecc errors: 0, idle", "it is slow.  , idle"),
        ('waiting is 40, vllm:num_preemptions_total{engine="0"} = 0', "waiting is 40,"),
        ("increase(vllm:num_preemptions_total[15m])=0 and a queue", "and a queue"),
        ("comfyui broke. by the way, does vllm run on Windows?", "comfyui broke."),
        ("ollama is slow. we used vLLM before.", "ollama is slow. we ."),
        ("comfyui坏了。顺便问一下vllm支持windows吗", "comfyui坏了。"),
        (
            "slow: Avg prompt throughput: 1.0 tokens/s, Avg generation throughput: 4.0 tokens/s, Running: 1 reqs, Waiting: 0 reqs",
            "slow:",
        ),
    ],
)
def test_what_is_excluded_is_left_out(said: str, rest: str) -> None:
    assert remaining(normalise(said)) == rest


@pytest.mark.parametrize(
    "said",
    [
        "no space left on device",
        "uncorrectable ecc errors 3, remapped rows pending 1",
        "preemptions 0.5 a second",
        "it hangs. by the way, nvidia-smi lists seven of eight gpus.",
        "no CUDA-capable device is detected, no module named vllm",
        "the gpu is not detected",
        "the card is gone",
        "with enforce-eager it is fine, without it dies",
        "we upgraded the driver but not the fabric manager",
        "the hang was solved by disabling custom all reduce",
        "is it fine if the memory is full?",
        "kv cache usage is low but requests wait",
        "没有空间了",
        "没有显卡",
        "显存不够",
        "卡没了",
        "关掉p2p就正常",
        "无法排除网络问题",
        "显存占用90%正常吗",
        "停在下载那一步,带宽是零",
        "关掉p2p解决了",
        "do i need a flag to let the model run its own script",
    ],
)
def test_a_lack_or_a_cure_is_a_symptom(said: str) -> None:
    assert remaining(normalise(said)) == normalise(said)


def test_bare_versions_are_no_symptom() -> None:
    assert without_setup("vllm 0.9.2, cuda 12.8, driver 570, h100, it hangs") == "h100, it hangs"
    assert without_setup("驱动570,cuda 12.8,起不来") == "起不来"


@pytest.mark.parametrize("said", ["our driver 470 is too old for cuda 12.8", "驱动还是470的,cuda 12.8的镜像起不来"])
def test_versions_of_which_something_is_said_stay(said: str) -> None:
    assert without_setup(said) == said
