"""Options of ``docker run`` that a corrected command repeats. Others are left out and named.

Source: the reference of ``docker container run`` (docs.docker.com, engine 27). What hands the container more of the
host than a model server needs (``--privileged``, ``--pid``, ``--security-opt`` and their like) is not repeated on the
word of a log: whoever needs it adds it again knowingly.
"""

from __future__ import annotations

import re

#: Options that stand alone.
DOCKER_SWITCHES = frozenset({"--rm", "-d", "--detach", "-i", "-t", "-it", "-ti", "--interactive", "--tty", "--init", "--read-only"})  # fmt: skip
#: Options with a value, as one word (``--ipc=host``) or two.
DOCKER_VALUES = frozenset({
    "--gpus", "--runtime", "--ipc", "--shm-size", "-p", "--publish", "-v", "--volume", "--mount", "-e", "--env", "--env-file",
    "--name", "--network", "--net", "--restart", "--ulimit", "-m", "--memory", "--cpus", "--cpuset-cpus", "-h", "--hostname",
    "-u", "--user", "-w", "--workdir", "--entrypoint", "--device", "--group-add", "--add-host", "--pull", "--platform",
    "--tmpfs", "--log-driver", "--log-opt", "-l", "--label", "--cap-add",
})  # fmt: skip
#: [registry[:port]/]name[:tag][@digest]
IMAGE = re.compile(
    r"[a-z0-9][\w.-]{0,100}(?::\d{1,5}(?=/))?(?:/[a-z0-9][\w.-]{0,100}){0,6}(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
