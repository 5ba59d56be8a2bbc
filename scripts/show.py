"""`make run`: one diagnosis of a log that a real server printed, in both languages, and what to try next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("vllm-diagnose")
#: What to try -> what it is.
NEXT = (
    ("logs /var/log/vllm.log", "your own server; folders, .gz and - (standard input) too"),
    ("logs bad.log --compare good.log", "what differs from the start that worked"),
    ('ask "engine dies while capturing graphs"', "a question, with or without --log FILE"),
    ('ask "显存不够，启动就报错"', "in Chinese; the answer is, too"),
    ("logs {log} -o json", "one JSON object; -o markdown for a ticket"),
    ('kb search "nccl timeout"', "look something up"),
)


def main() -> int:
    log = Path(sys.argv[1])
    files = [log]
    if log.is_dir():
        files = [log / name for name in ("server.log", "responses.jsonl") if (log / name).exists()]
    for language in ("en", "zh"):
        print(f"$ vllm-diagnose logs {' '.join(map(str, files))} --lang {language}\n", flush=True)
        finished = subprocess.run([COMMAND, "logs", *files, "--lang", language], check=False)
        if finished.returncode:
            return finished.returncode
        print()
    command = COMMAND.relative_to(Path.cwd()) if COMMAND.is_relative_to(Path.cwd()) else COMMAND
    print("What to try next")
    for arguments, purpose in NEXT:
        print(f"  {command} {arguments.format(log=log)}\n      {purpose}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
