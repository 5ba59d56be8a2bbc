"""Finds what a person says it is not: "nvidia-smi is clean, no ECC errors, the NCCL problem is solved", and "what if".

Such a clause names the words by which a cause is recognised, and states that the cause is not there. It is left out of
what is heard and compared. A lack that is itself the symptom ("no space left", "no CUDA device") is no exclusion: only
what can be excluded, followed by nothing that goes on, is taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_CJK = re.compile(r"[\u3400-\u9fff]")
_CLAUSE = re.compile(r"(?:[^,.?!。;]|[,.?!;](?=\S))+[,.?!。;]*|[,.?!。;]+")
_CHINESE_CLAUSE = re.compile(r"[^,。?!;]+[,。?!;]*|[,。?!;]+")
_TURN = re.compile(r"(?<=\S) (?=(?:but|yet|still|however|and yet|and still)\b)")
_EDGES = " ,.?!。;:-()"
#: A longer clause says more than an exclusion: characters.
_LONGEST = 140

_LEAD = (
    r"(?:(?:and|but|also|so|though|although|while|there|it|that|this|we|i|they|still|plus|with|have|has|had|see|saw|seen|got"
    r"|get|found|find|is|are|was|were|definitely|surely|clearly|certainly|'s|apparently) )*"
)
_TAIL = (
    r"(?: (?:at all|either|anywhere|so far|here|there|yet|today|now|involved|set|configured|reported|logged|seen"
    r"|(?:in|on|from|with|about|between) (?:[\w-]+ ){0,3}[\w-]+))*"
)
_EVENT = (
    r"(?:oom\w*(?: kills?)?|out of memory|xids?|ecc|mce|throttling|swap|preemptions?|evictions?|swapping|overheating|firewalls?"
    r"|prox(?:y|ies)|packet loss|retransmits?|(?:memory )?leaks?)"
)
_NOISE = r"(?:errors?|warnings?|problems?|issues?|failures?|events?|messages?|complaints?|troubles?)"
_THING = (
    r"(?:gpus?|cards?|nvidia-smi|drivers?|cuda|memory|v?ram|disks?|storage|network|nvlinks?|infiniband|ib|nccl|dns|firewall|proxy"
    r"|ports?|shm|shm-size|dmesg|syslog|kernel log|temperatures?|temps|power|cooling|ecc|xids?|queue|kv[ -]?cache|checksums?"
    r"|(?:model|weight) files|token|permissions?|versions?|cpu|pcie|links?|cables?|fabric(?: manager)?|certificates?|clocks?"
    r"|prompt length|context length|selinux|apparmor|peer access|ranks)"
)
_FINE = (
    r"(?:fine|ok|okay|normal|healthy|clean|good|intact|correct|valid|zero|complete|perfect|green|up|active|free|open|enabled"
    r"|disabled|off|running|visible|present|ready|sufficient|plenty|unchanged|stable)"
)
_MENDED = r"(?:fixed|solved|resolved|repaired|mended|sorted(?: out)?|cleaned up|replaced)"
_FEATURE = r"(?:lora|docker|ray|kubernetes|tensor parallel\w*|speculative decoding|tool call\w*|quanti[sz]ation|nccl|prefix caching)"
_ENGLISH = re.compile(
    rf"^{_LEAD}(?:do not|don't|never|not|are not) (?:using|use|run) (?:any )?{_FEATURE}|^{_LEAD}no {_FEATURE} (?:involved|used|in use|at all)$"
    rf"|^(?:it|this|that)(?:'s| is) not {_FEATURE}$"
    rf"|^{_LEAD}(?:the )?(?:ulimit )?memlock (?:limit )?(?:is |set to )?(?:already )?unlimited$"
    rf"|^{_LEAD}(?:[\w-]+ ){{0,3}}all (?:the )?(?:\w+ )?(?:nodes|ranks|workers|gpus|cards|pods|replicas) (?:are |have )?(?:alive|up|ready|joined|there|healthy|visible|present)"
    r"(?: and \w+)?$|"
    rf"^{_LEAD}(?:no|zero|not a single|never any|no more|not an?) (?:any |more |visible |new |signs? of )?(?:[\w-]+ )??{_EVENT}"
    rf"(?: {_NOISE})?{_TAIL}$"
    rf"|^{_LEAD}(?:no|zero|not a single) (?:[\w-]+ ){{0,2}}{_THING} {_NOISE}{_TAIL}$"
    rf"|^{_LEAD}(?:no|zero|not a single) {_NOISE} (?:in|on|from|with|about) (?:[\w-]+ ){{0,2}}{_THING}(?: [\w-]+){{0,2}}$"
    rf"|^{_LEAD}not (?:an? |the |my |our )?(?:[\w-]+ ){{1,3}}(?:problem|issue|cause|reason|culprit|fault|question)$"
    rf"|^{_LEAD}not (?:due to|because of|related to|caused by|about) (?:[\w-]+ ?){{1,5}}$"
    rf"|^(?:but |so |and )?(?:it|this|that)(?:'s| is| was)(?: definitely| surely| certainly)? not (?:the|my|our) (?:[\w-]+ ){{0,2}}{_THING}$"
    rf"|^{_LEAD}not (?:an? )?(?:oom\w*|out of (?:gpu |video )?(?:memory|vram|disk|space))$"
    rf"|^{_LEAD}(?:the |our |my |all )?(?:[\w-]+ ){{1,3}}(?:is|was|are|were)(?: not|n't) (?:the|a|our|an) (?:problem|issue|cause|reason|culprit)$"
    rf"|^{_LEAD}(?:the |our |my |all |both |every )*(?:[\w-]+ ){{0,2}}?{_THING}(?:,? and (?:the )?[\w-]+)?(?: (?:usage|use|errors?|status|state|logs?|size|count|numbers?|\d+)){{0,2}}"
    rf" (?:is|are|was|were|looks?|seems?|stays?|shows?) (?:all |both |completely |perfectly |totally |quite |definitely |reported )?{_FINE}(?: too| as well| everywhere| on all \w+)?$"
    rf"|^{_LEAD}(?:the |our |my |all |both )*(?:[\w-]+ ){{0,2}}?{_THING}(?: \w+)? (?:is|are|was|were)(?: not|n't) (?:\w+ )?"
    r"(?:full|in use|taken|occupied|used|exceeded|exhausted|throttl\w+|overheat\w+|blocked|closed|hot|low)$"
    rf"|^{_LEAD}(?:the |our |all )?(?:[\w-]+ ){{0,3}}{_THING} (?:works?|runs)(?: fine| too| as well)?$"
    r"|\b(?:ruled out|excluded|can (?:be )?(?:exclude|rule out))\b"
    rf"|^{_LEAD}(?:the |our |all |both )*(?:[\w-]+ ){{1,3}}(?:tests?|checks?|checksums?|hashes)(?: \w+)? (?:pass(?:es|ed)?|succeed(?:s|ed)?|match(?:es)?)"
    rf"{_TAIL}$"
    rf"|^{_LEAD}(?:the |our |that |this )?(?:[\w-]+ ){{1,4}}(?:is|was|has been|got|are|were|have been) (?:already |now |since |finally |meanwhile )?{_MENDED}"
    r"(?: (?:since|already|meanwhile|now|(?:last|this) \w+|yesterday|today|long ago|by me|by us))*$"
    rf"|^{_LEAD}(?:the |our )?(?:[\w-]+ ){{0,2}}(?:oom|error|problem|issue|warning)s? (?:is|are) gone(?: (?:since|now|already|yesterday|today|last \w+))*$"
)
#: "after I fixed the NCCL problem": the words themselves, wherever they stand in the clause.
_ENGLISH_AFTER = re.compile(
    rf"\b(?:after|since|once|now that) (?:i|we|they|somebody|someone)(?: had| have| finally| already)? {_MENDED} "
    rf"(?:the |our |that |this |an? )?(?:(?:[\w-]+ ){{1,4}}?(?:problem|issue|error|bug|failure)s?|[\w-]+)"
)
_ENGLISH_MENDED = re.compile(rf"^(?:now |since |already |meanwhile |long |that is |it is )*{_MENDED}(?: \w+)?$")

#: "What happens when a GPU falls off the bus": asked about, not seen.
_PART = r"(?:ecc|nvlinks?|fabric ?manager|infiniband|rdma|ib)"
_ENGLISH_IMAGINED = re.compile(
    r"^(?:and |but |so )?what (?:happens|will happen|would happen) (?:if|when|once)\b|^(?:and |but |so )?what if\b"
    rf"|^(?:is|are) (?:an? |the )?{_PART} (?:needed|required|necessary|recommended)\b"
    rf"|^should {_PART} be (?:enabled|disabled|on|off)\b|^do (?:i|we) need (?:an? |the )?{_PART}\b"
)
_CHINESE_IMAGINED = re.compile(
    r"会怎么?样$|会(?:发生|有)?(?:什么|啥)(?:情况|后果|影响)?$|^(?:如果|要是|假如|万一)[^,]*(?:吗|么)$"
    r"|^[^,]{0,8}(?:需要|必须要?|要不要|有必要|该不该)(?:有|用|开|装|买)?(?:ecc|nvlink|fabric ?manager|ib|infiniband|rdma|ray|docker)[^,]{0,4}$"
)

_ZH_LEAD = r"(?:也|都|并|还|但是?|而且|而|日志(?:里|中)?|里面?|其实|应该|肯定|确认|确定|明显|可是|不过|目前|现在|这|那|它|绝对)*"
_ZH_EVENT = (
    r"(?:oom\w*|爆显存|爆内存|(?:显存|内存)(?:不足|不够|溢出|错误|报错|泄漏)|xid ?\d*|ecc|掉卡|掉线|降频|抢占|驱逐|排队|积压|代理|防火墙"
    r"|丢包|泄漏|限流|过热|死锁|硬件(?:错误|故障)|(?:显卡|gpu|驱动|网络|nccl|cuda|磁盘|硬盘) ?(?:错误|报错|故障|异常|问题))"
)
_ZH_THING = (
    r"(?:显存|内存|显卡|gpu|卡|驱动|cuda|磁盘|硬盘|空间|存储|网络|网卡|端口|防火墙|代理|dns|nvlink|ib|nccl|温度|供电|电源|日志|dmesg|内核日志"
    r"|nvidia-smi|shm|共享内存|权限|token|令牌|(?:模型|权重)?文件|版本|队列|缓存|kv ?cache|cpu|负载|带宽|链路|通信|ecc|散热|掉卡|oom|硬件"
    r"|上下文|长度|提示词|模型|rank|模板|证书|ipc|时钟|频率|memlock|错误|节点|ecc错误)"
)
_ZH_THINGS = rf"{_ZH_THING}(?:[、和跟与及,]?{_ZH_THING})*"
_ZH_GAP = r"(?:都|也|是|全|一切|很|完全|还|均|的|那边|这边|里|上|状态|使用率?|占用率?|情况|显示|看(?:起来|着)?|本身|检查|之间|容量|大小|版本|\d+%?)*"
_ZH_FINE = r"(?:正常|没问题|没毛病|没事|没报错|完好|充足|健康|好的|ok|够用?|空的|通的?|对的?|匹配|一致|完整|通过|齐全?|都在|干净|unlimited|够大)"
_ZH_MENDED = r"(?:解决|修好|修复|清理|搞定|处理|排除)"
_ZH_FEATURE = r"(?:lora|docker|ray|k8s|nccl|张量并行|投机解码|工具调用|量化|多卡)"
_CHINESE = re.compile(
    rf"^{_ZH_LEAD}(?:我们)?没有?(?:使用|用)(?:过|到)?{_ZH_FEATURE}$|^{_ZH_LEAD}不是{_ZH_FEATURE}的?问题$"
    rf"|^{_ZH_LEAD}ecc(?:是|都|也)*(?:开着?|启用|打开)(?:的|了)?$"
    r"|^(?!.*[换关加改设调升降重用去禁装删拔开])[^,]{1,14}(?:解决|修好|修复|搞定)(?:了|好了|掉了|完了)$"
    rf"|^{_ZH_LEAD}(?:{_ZH_THINGS})?(?:错误|报错)(?:计?数)?(?:都|也)?(?:为|是)(?:零|0)$"
    r"|^[^,]{0,10}(?:节点|rank|worker|卡|pod|副本)(?:都|全|全都)(?:在线|在|好的|起来了)$|"
    rf"^{_ZH_LEAD}(?:没有?|无|未见|未|并没有|不存在|没见|没看到|没发现|并?不是|并非)(?:发生|出现|看到|发现|任何|什么|过|报|有|再|到)*"
    rf"{_ZH_EVENT}(?:相关)?的?(?:错误|报错|问题|告警|异常|现象|情况|记录)?(?:了|啊|过|的)*$"
    rf"|^{_ZH_LEAD}(?:并?不是|并非|不在于|跟|和|与)(?:因为|由于)?{_ZH_THINGS}(?:的|不够|不足|坏|满|爆|错误|故障|太[长小大]|{_ZH_GAP})*"
    r"(?:问题|原因|锅|错误|故障|不够|不足|坏了?|满了?|无关|没关系)$"
    rf"|^{_ZH_LEAD}{_ZH_THINGS}{_ZH_GAP}(?:并?没有?|未|不)(?:被|有)?(?:满|爆|坏|占用?|用完|溢出|超|掉|降频?|低|高|报错|异常)(?:掉|满|着|过|了|用)*$"
    rf"|^{_ZH_LEAD}{_ZH_THINGS}{_ZH_GAP}{_ZH_FINE}(?:了|的|啊)*$"
    rf"|^{_ZH_LEAD}(?:已经?)?(?:关|没开)(?:闭|掉|了)*(?:防火墙|代理|selinux)了?$|^{_ZH_LEAD}(?:防火墙|代理|selinux)(?:已经?|都|也)*(?:关|没开|没用)(?:闭|掉|了)*$"
    r"|^(?!.*(?:不|无法|没法|没)排除).*(?:已经?|都|基本|可以|能)排除|^排除(?:了|掉)"
    rf"|^{_ZH_LEAD}[^,]{{1,12}}(?:测试|test|自检|检测|校验)(?:都|也|是|全部?|跑)*(?:通过|过|没问题|正常|成功|没报错)了?$"
    rf"|^{_ZH_LEAD}[^,]{{1,14}}(?:已经?|都|也)(?:被)?{_ZH_MENDED}(?:了|好|过|掉|完)*$"
    rf"|^{_ZH_LEAD}[^,]{{1,14}}(?:问题|报错|错误|故障){_ZH_MENDED}(?:了|好|过|掉|完)*$"
)
_CHINESE_AFTER = re.compile(rf"{_ZH_MENDED}(?:了|好|完|掉)*[^,]{{1,14}}?(?:之后|以后|后)")
_CHINESE_MENDED = re.compile(rf"^(?:已经?|后来|现在|都)*{_ZH_MENDED}(?:了|好|过|掉|完)*$")


#: "vLLM 0.9.2, CUDA 12.8, driver 570": what a setup consists of, a clause each.
_SETUP = re.compile(
    r"(?:^|(?<=[,;。.])|(?<=[,;。.] ))(?:vllm|cuda|(?:nvidia |gpu )?driver|驱动|torch|pytorch|python|transformers|nccl|ubuntu)"
    r"(?: version|版本)?[ :=是为]{0,2}v?\d[\d.]*\d(?:\.?post\d|rc\d)?(?=[,;:。]|\. |\.?$)"
)


#: "ECC uncorrectable 0, throttle reasons none, num_preemptions_total 0": counters that have counted nothing.
_COUNTED = (
    r"(?:ecc|volatile|aggregate|uncorrect\w*|correctable|corrected|remapped|retired|pending|sbe|dbe|xids?|replays?|preemptions?"
    r"|(?:vllm:)?num_preemptions(?:_total)?|throttle reasons?|clocks? event reasons?)"
)
_NOUGHT = re.compile(
    rf"\b(?:increase\(|rate\()?{_COUNTED}(?:[ _.-]+(?:{_COUNTED}|errors?|rows?|pages?|failures?|counts?|total|memory|events?)){{0,8}}"
    r"(?:\{[^}]{0,200}\})?(?:\[\w{1,5}\])?\)?[ :=]{1,3}(?:0|none|zero|not active)(?:\.0+)?(?![\w.%/])"
)
#: "Asking here because the vLLM people know GPUs, we used vLLM before": who is asked and what was, not what runs.
_ADDRESSED = re.compile(
    r"\b(?:the |you |dear )?vllm(?:'s)? (?:people|folks|guys|devs?|developers?|community|experts?|team|channel|forum)\b"
    r"|\b(?:used|ran|had|(?:came|come|coming|moved|switched|migrated) from) vllm(?: before| previously| earlier)\b"
)
#: A line of the engine's statistics in the middle of a description is read as what it is, not as a person's words.
_STATISTICS = re.compile(
    r"avg prompt throughput: [\d.]+ tokens/s, avg generation throughput: [\d.]+ tokens/s"
    r"(?:, (?:running|waiting|swapped|preempted|deferred|pending): \d+ reqs?)*"
)
#: "By the way, does vLLM run on Windows": beside what happened.
_BY_THE_WAY = re.compile(
    r"(?:^|(?<=[,.?!。;]))[^,.?!。;]{0,4}(?:顺便(?:问|请教|想问)[^.?!。;]*[.?!。;]?"
    r"|(?:(?:by the way|btw|(?:a )?side question)\b|(?:also|and),? (?:is|does|can|could|would|will) vllm\b)[^.!。;]{0,200}\?)"
)


def without_setup(text: str) -> str:
    """A description without bare versions: who lists them describes a server, and no symptom of it."""
    return _SETUP.sub("", text).strip(_EDGES) if _SETUP.search(text) else text


def remaining(normalised: str) -> str:
    """A normalised description without what it excludes; the same text where it excludes nothing."""
    normalised = _ADDRESSED.sub("", normalised)
    normalised = _NOUGHT.sub(" ", _STATISTICS.sub(" ", _BY_THE_WAY.sub(" ", normalised))).strip() or normalised
    if _CJK.search(normalised):
        return _without(
            normalised,
            _CHINESE_CLAUSE.findall(normalised),
            _CHINESE,
            _CHINESE_AFTER,
            _CHINESE_MENDED,
            _CHINESE_IMAGINED,
        )
    clauses = [part for clause in _CLAUSE.findall(normalised) for part in _TURN.split(clause)]
    return _without(normalised, clauses, _ENGLISH, _ENGLISH_AFTER, _ENGLISH_MENDED, _ENGLISH_IMAGINED)


def _without(
    text: str,
    clauses: Sequence[str],
    excludes: re.Pattern[str],
    after: re.Pattern[str],
    mended: re.Pattern[str],
    imagined: re.Pattern[str],
) -> str:
    kept: list[str] = []
    for clause in clauses:
        bare = clause.strip(_EDGES)
        if imagined.search(bare):
            continue
        if len(bare) > _LONGEST or "?" in clause:
            kept.append(clause)
        elif mended.search(bare):
            del kept[-1:]
        elif not excludes.search(bare):
            kept.append(after.sub("", clause))
    rest = " ".join(part.strip() for part in kept).strip()
    return rest if len(rest) < len(" ".join(part.strip() for part in clauses).strip()) else text
