"""Who says too little is asked for more: words that fit a dozen causes, or are meant otherwise, are no evidence of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from assistant.diagnosis.confidence import LEAST_ALIKE, doubted, threshold
from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from assistant.diagnosis.model import Diagnosis
from knowledge.catalog import load
from knowledge.compiler import _not_inside_words

VAGUE = """\
卡住了怎么办
服务卡死，重启能好
启动后一直卡着没反应
启动一半卡住不动了
卡在这里输出没了
请求发过去一直卡着
跑着跑着就卡了
服务卡住不可用
用着用着卡住，然后全没了
进程卡着杀不掉
卡在百分之百
机器卡得动不了
起服务卡半天
昨天还好好的今天就不行了
一直卡没响应
it is stuck
the thing hangs
doesn't work
after the upgrade it stopped working
it just stops after a while
stuck at 100%
it went away
one of them is missing
it dropped out during the night
the model is gone from the list
needs a restart every morning
i restarted it and now it is fine
requests vanish
the topping on it all: it stopped
help please\
""".splitlines()


#: What is said not to be there, or to have been mended.
EXCLUDED = """\
it does not work, no OOM, no Xid
nvidia-smi is fine, no OOM, no Xid, nccl tests pass, but it still does not work
no errors in nvidia-smi, memory is fine, NCCL test passes. What else can I check?
the gpus are healthy, ecc errors are zero, temperatures are normal, still trouble
disk is not full, port is free, token is valid, and it will not start
we ruled out a full disk and a wrong token, and it still fails at startup
the port conflict is fixed, now something else is wrong
after I fixed the NCCL problem, now requests are rejected sometimes
not a memory problem, vram is fine
the model files are complete, checksums match
the disk was full last month, fixed
no preemption, no queue, cache is at 10%, and people complain
no throttling
no tool calling involved
all ranks joined
ulimit memlock is unlimited
没有掉卡
不是显存问题
没有 ecc 错误
ecc 是开的
磁盘没满
磁盘上个月满过，已经清理了
端口没被占用
没有抢占
没有降频
显存充足，磁盘也没满
nvidia-smi 正常，没有OOM，没有Xid，NCCL测试通过，还是不行
显卡健康，ecc错误为零，温度正常，还是有问题
排除了磁盘满和token的问题，启动还是失败
端口冲突解决了，现在又有别的问题
修好 NCCL 之后又有别的问题
不是投机解码的问题，已经关了\
""".splitlines()

#: Words of the field that mean something else.
MEANT_OTHERWISE = """\
my credit card is missing
the trello card disappeared
the mobile device is unreachable
we had 8 pods now only 7
everything is slow since this morning
clients are throttled
the api gateway throttles our clients
the frequency of errors is high
the clock went wrong after dst
a bad page in the wiki
quota of the namespace
root is up
wrong address on the invoice
the process forks into two teams
bundles are never delivered
3 of 8 clients have trouble
there is no card for this story
it counts zero errors
garbage collector pauses
redis cache is full
cpu usage 100%
after the migration it fails
gpu memory is at 22 gb of 24 gb
we bought nvlink bridges
we reboot the server weekly
the temperature setting is 0.9 and it is slow
vllm 0.9.2, cuda 12.8, driver 570, h100. It behaves strangely since yesterday
ssh 老掉线
网络老掉
少了一张图
一张表没了
突然不见了
银行卡丢了
网卡掉了
同事失联
8个pod只剩7个
错误频率变高
参数不对
按钮失效，页面上的选项不见了
收货地址错误
日志乱码
链路断了
自动重启
磁盘使用率98%
客户端没加入会议
查不到原因
是不是显存
vllm 0.10.1，两张4090，cuda 12.4，请求偶尔失败\
""".splitlines()

#: Questions about features, and what might happen one day.
ASKED = """\
does vllm support lora
is prefix caching enabled by default
which attention backend is used
how do i enable speculative decoding
explain the waiting queue
what if a gpu falls off the bus
what happens when the kv cache is full
should ecc be enabled
vllm 支持 lora 吗
怎么开启工具调用
怎么看日志
70b 要多少显存
掉卡了会怎样
如果掉卡服务会恢复吗
推理需要ecc吗
开了前缀缓存\
""".splitlines()

#: The same words where they are meant: cause, description.
MEANT = [
    line.split(" ", 1)
    for line in """\
gpu/fallen-off-bus the gpu is gone from nvidia-smi
gpu/fallen-off-bus gpu 5 vanished during the night, seven of eight gpus left
gpu/fallen-off-bus the second card is no longer listed in nvidia-smi
gpu/fallen-off-bus nvidia-smi 里少了一张卡
gpu/fallen-off-bus 跑着跑着显卡失联
gpu/fallen-off-bus 八张卡只剩七张
gpu/fallen-off-bus 有一张 4090 突然不见了
gpu/uncorrectable-ecc uncorrectable ecc errors on gpu 2
gpu/uncorrectable-ecc the gpu has retired pages and needs a row remap
gpu/uncorrectable-ecc 显存 ECC 错误一直增加
gpu/uncorrectable-ecc 显存出现不可纠正的错误
gpu/throttling the gpus throttle at 87 degrees and tokens per second drop
gpu/throttling gpu clocks drop to 600 mhz under load
gpu/throttling 显卡温度太高，一直降频
gpu/throttling 核心频率掉到 600MHz
gpu/nvlink-or-fabric nvlink is down between two gpus
gpu/nvlink-or-fabric fabric manager 没起来
gpu/device-busy-or-hidden torch sees no gpus in the container
gpu/device-busy-or-hidden no cuda devices found in the pod
gpu/device-busy-or-hidden 容器里看不到显卡
gpu/host-power-loss the whole machine reboots under full load, nothing in the logs
gpu/host-power-loss 一压测整机就断电重启，日志里什么都没有
install/filesystem-permission no space left on device while the model downloads
install/filesystem-permission disk quota exceeded in the home directory
install/filesystem-permission 磁盘满了，模型写不进去
install/filesystem-permission 用户配额超了，缓存写不了
install/unknown-argument 启动参数错误，起不来
install/unknown-argument the --swap-space flag was removed after the upgrade
install/unknown-argument 启动时说不认识这个参数
install/binary-mismatch undefined symbol when importing vllm
install/binary-mismatch 加载 so 报未定义符号
install/port-in-use port 8000 is already in use
install/port-in-use 8000 端口被占用，起不来
install/driver-too-old driver 470 is too old for the cuda 12.8 image
install/driver-too-old 驱动是 470，cuda 12.8 的镜像起不来
engine/illegal-memory-access illegal memory access after some hours
engine/illegal-memory-access a kernel touches memory it does not own
engine/illegal-memory-access 显卡报非法地址访问，引擎崩了
engine/fork-after-cuda cannot re-initialize cuda in forked subprocess
distributed/ray-cluster ray waits for the placement group forever
distributed/ray-cluster 等待 placement group 超时
distributed/rendezvous-failed only 3 of 4 clients joined, then it timed out
distributed/rendezvous-failed rendezvous: rank 没到齐，超时退出
performance/kv-cache-saturated kv cache is full and requests queue
performance/kv-cache-saturated 缓存打满了，请求一直排队
memory/kv-cache-preemption requests are constantly preempted and recomputed
memory/kv-cache-preemption 日志里请求频繁被抢占，然后重算
quality/garbage-output the model answers garbage
quality/garbage-output 模型输出全是乱码
performance/low-gpu-utilization gpu utilization is low although requests wait in the client
memory/host-ram-exhausted the oom killer ends the process while loading, vram is fine
memory/host-ram-exhausted 容器被 OOMKilled，显存没满
gpu/fallen-off-bus 3号卡没反应了，nvidia-smi 也卡住
gpu/fallen-off-bus 显卡无响应
gpu/fallen-off-bus gpu 3 dropped out during the night
gpu/fallen-off-bus one of the cards is missing\
""".splitlines()
]


@pytest.fixture(scope="module")
def told() -> Callable[[str], Diagnosis]:
    catalog = load()
    engine = Engine(catalog)
    return lambda words: engine.diagnose(read_case(catalog, text=words)[0])


@pytest.mark.parametrize("words", [*VAGUE, *EXCLUDED, *MEANT_OTHERWISE, *ASKED])
def test_such_words_name_no_cause(words: str, told: Callable[[str], Diagnosis]) -> None:
    diagnosis = told(words)
    assert diagnosis.verdict == "unknown", (diagnosis.causes[0].id, diagnosis.causes[0].confidence)
    assert diagnosis.next_steps


@pytest.mark.parametrize(("cause", "words"), MEANT)
def test_what_is_meant_is_heard(cause: str, words: str, told: Callable[[str], Diagnosis]) -> None:
    diagnosis = told(words)
    assert (diagnosis.verdict, diagnosis.causes[0].id) == ("cause", cause)


@pytest.mark.parametrize(
    ("pattern", "made"),
    [
        ("top_?[pk]", "(?:^|[^a-z])top_?[pk]"),
        ("(prefill|p) ?节点", "((?:^|[^a-z])prefill|(?:^|[^a-z])p) ?节点"),
        ("(卡)?gpu", "(卡)?(?:^|[^a-z])gpu"),
        ("卡hang|v1", "卡hang|(?:^|[^a-z])v1"),
        (r"\b(?:imex)", r"\b(?:imex)"),
        ("[a-z]b(c|d)", "[a-z]b(c|d)"),
    ],
)
def test_latin_words_of_chinese_patterns_begin_where_a_word_begins(pattern: str, made: str) -> None:
    assert _not_inside_words(pattern) == made


def test_words_alone_that_sound_like_no_symptom_of_their_cause_are_a_guess() -> None:
    engine = Engine(load())
    facts, found = engine.consider(read_case(engine.catalog, text="one GPU vanished from nvidia-smi while serving")[0])
    words, limit = found[0], threshold(engine.catalog.calibration)
    assert words.cause.id == "gpu/fallen-off-bus" and words.likeness >= LEAST_ALIKE
    assert doubted(0.97, words, facts, engine.catalog.calibration) == 0.97
    unlike = replace(words, likeness=LEAST_ALIKE - 0.01)
    assert doubted(0.97, unlike, facts, engine.catalog.calibration) < limit
    assert doubted(0.1, unlike, facts, engine.catalog.calibration) == 0.1
    log = "[ 12.345678] NVRM: Xid (PCI:0000:c1:00): 79, pid=1, GPU has fallen off the bus."
    facts, found = engine.consider(read_case(engine.catalog, text=log)[0])
    printed = replace(found[0], likeness=0.0)
    assert doubted(0.97, printed, facts, engine.catalog.calibration) == 0.97
