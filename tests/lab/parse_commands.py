"""Run by the laboratory's own Python: does the real argument parser of its vLLM take these command lines?

Reads a JSON list of argument lists (what follows ``vllm serve``) from standard input and writes a JSON list with
``null`` or what the parser said for each. No server is started, no model is read.
"""

import contextlib
import io
import json
import os
import sys

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def main() -> None:
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    except ImportError:
        from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser
    commands = json.load(sys.stdin)
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    said = []
    for arguments in commands:
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                validate_parsed_serve_args(parser.parse_args(arguments))
            said.append(None)
        except SystemExit:
            said.append(errors.getvalue()[-300:] or "refused without a word")
        except Exception as error:  # noqa: BLE001 (whatever it raises is its answer)
            said.append(f"{type(error).__name__}: {error}"[:300])
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
