"""`sanity` and `capture`: look at this node and at the server on it, with consent where something is touched."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant.faces.cli.auditing import noted
from assistant.faces.cli.launching import Launcher, SiteOptions, run_on_nodes, run_on_site
from assistant.faces.cli.nodes import (
    HostNetworkOption,
    ImageOption,
    KubeContextOption,
    KubeOption,
    NamespaceOption,
    NodeOption,
)
from assistant.faces.cli.options import ExitCodeOption, Lang, LangOption, Output, OutputOption, fail

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis
    from tools.registry import Action, Consent
    from tools.sanity.results import Report

app = typer.Typer(no_args_is_help=True)
EXIT = {"ok": 0, "note": 0, "skipped": 0, "bad": 1, "unknown": 4}

PidOption = Annotated[
    int | None, typer.Option("--pid", min=1, help="a process of the server to look at; found unless given")
]
YesOption = Annotated[bool, typer.Option("--yes", help="agree to the load or the tracing without being asked")]
PythonOption = Annotated[
    str | None, typer.Option("--python", help="vLLM's interpreter; that of the running server unless given")
]
DeadlineOption = Annotated[float | None, typer.Option("--deadline", min=1, help="seconds the whole may take")]


NodeNameOption = Annotated[
    str | None, typer.Option("--node", metavar="NAME", help="do it on the node of this target, by its tool server")
]


@dataclass(frozen=True, slots=True)
class Shown:
    """How the person wants the answer."""

    output: str
    lang: str
    exit_code: bool
    yes: bool = False
    deadline_s: float | None = None


def mount(root: typer.Typer) -> None:
    """Add `sanity` and `capture` to the command line."""
    root.add_typer(app, name="sanity", help="Checks and active tests of this node: collectives, GPUs, host, network.")
    root.command("capture")(capture)


def _shown(
    output: Output, lang: Lang | None, exit_code: bool, yes: bool = False, deadline: float | None = None
) -> Shown:
    return Shown(output.value, lang.value if lang else "en", exit_code, yes, deadline)


@app.command()
def gpu(
    pid: PidOption = None,
    node: NodeNameOption = None,
    lang: LangOption = None,
    output: OutputOption = Output.text,
    exit_code: ExitCodeOption = False,
) -> None:
    """Driver, memory and its holders, ECC, Xid events, clocks, links and topology of the GPUs."""
    import tools.gpu.check  # noqa: F401 (declares the action)

    _act("check_gpu", {"pid": pid}, _shown(output, lang, exit_code), "gpu", node=node)


@app.command()
def host(
    pid: PidOption = None,
    model: Annotated[str | None, typer.Option("--model", help="folder of the model")] = None,
    loads: Annotated[
        bool, typer.Option("--loads", help="also measure the disk under the model (reads up to 4 GiB)")
    ] = False,
    took: Annotated[
        float | None, typer.Option("--took", min=0.1, help="with --loads: seconds that loading took; else from the log")
    ] = None,
    dummy: Annotated[
        bool, typer.Option("--dummy", help="with --loads: load the model with invented weights too, reading no file")
    ] = False,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, max=64, help="with --loads: ranks that load; else the server's")
    ] = None,
    python: PythonOption = None,
    on_busy_gpu: Annotated[
        bool, typer.Option("--on-busy-gpu", help="with --dummy: run although another process holds GPU memory")
    ] = False,
    node: NodeNameOption = None,
    lang: LangOption = None,
    output: OutputOption = Output.text,
    yes: YesOption = False,
    exit_code: ExitCodeOption = False,
) -> None:
    """Shared memory, limits, RAM, CPUs, disks, compilers, lingering variables and packages."""
    shown = _shown(output, lang, exit_code, yes)
    if loads:
        import tools.host.loading

        arguments = {
            "pid": pid,
            "model": model,
            "took_s": took,
            "ranks": ranks,
            "dummy": dummy,
            "python": python,
            "on_busy_gpu": on_busy_gpu,
        }
        _act("measure_loading", arguments, shown, "loading", node=node)
        return
    if dummy or on_busy_gpu or any(given is not None for given in (took, ranks, python)):
        fail("--took, --dummy, --ranks, --python and --on-busy-gpu belong to --loads")
    import tools.host.check  # noqa: F401 (declares the action)

    _act("check_host", {"pid": pid, "model": model}, shown, "host", node=node)


@app.command()
def network(
    pid: PidOption = None,
    hub: Annotated[bool, typer.Option("--hub/--no-hub", help="also try to reach the model hub")] = True,
    node: NodeNameOption = None,
    lang: LangOption = None,
    output: OutputOption = Output.text,
    exit_code: ExitCodeOption = False,
) -> None:
    """The address vLLM will choose and why, the host name, interfaces, ports, proxies, hub and RDMA."""
    import tools.network.check  # noqa: F401 (declares the action)

    _act("check_network", {"pid": pid, "hub": hub}, _shown(output, lang, exit_code), "network", node=node)


@app.command()
def nccl(
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, max=64, help="ranks of the group; one a GPU, or 2")
    ] = None,
    python: PythonOption = None,
    pid: PidOption = None,
    master: Annotated[str | None, typer.Option("--master", metavar="HOST:PORT", help="where the ranks meet")] = None,
    first_rank: Annotated[int, typer.Option("--first-rank", min=0, help="number of the first rank started here")] = 0,
    here: Annotated[int | None, typer.Option("--here", min=1, help="ranks started here; all unless given")] = None,
    stage_seconds: Annotated[
        float | None, typer.Option("--stage-seconds", min=1, max=600, help="seconds each stage may take")
    ] = None,
    cpu_only: Annotated[bool, typer.Option("--cpu-only", help="leave the GPU stages out")] = False,
    bisect: Annotated[bool, typer.Option("--bisect/--no-bisect", help="on failure, try one change at a time")] = True,
    on_busy_gpu: Annotated[
        bool, typer.Option("--on-busy-gpu", help="run although another process holds GPU memory")
    ] = False,
    print_script: Annotated[
        bool, typer.Option("--print-script", help="print the test for `kubectl exec` and end")
    ] = False,
    read: Annotated[
        Path | None, typer.Option("--read", help="judge what the printed test has printed; - is standard input")
    ] = None,
    launcher: Annotated[Launcher, typer.Option("--launcher", help="who starts the ranks")] = Launcher.local,
    node: NodeOption = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=2, max=512, help="how many nodes Slurm or Kubernetes shall give")
    ] = None,
    image: ImageOption = "",
    kube: KubeOption = "",
    kube_context: KubeContextOption = "",
    namespace: NamespaceOption = "",
    host_network: HostNetworkOption = False,
    address: Annotated[
        str, typer.Option("--address", help="of the Ray cluster; the one that runs here unless given")
    ] = "",
    ports: Annotated[
        str | None, typer.Option("--ports", help="ports that are tried between nodes; ranks meet at the first")
    ] = None,
    lang: LangOption = None,
    output: OutputOption = Output.text,
    yes: YesOption = False,
    deadline: DeadlineOption = None,
    exit_code: ExitCodeOption = False,
) -> None:
    """Take one process a rank through all stages of a collective; name the rank and stage at fault."""
    from tools.sanity import nccl as tested

    shown = _shown(output, lang, exit_code, yes, deadline)
    if print_script:
        sys.stdout.write(tested.script())
        return
    if read is not None:
        from assistant.faces.cli.printed_test import judged_file

        _show(judged_file(read, shown.lang), shown, "nccl")
        return
    if launcher is not Launcher.local:
        if any(given is not None for given in (pid, master, ranks)) or first_rank:
            fail("--pid, --master, --ranks and --first-rank belong to one node; --launcher gives them to each")
        if python is not None and launcher is Launcher.nodes:
            fail("--python belongs to one node; each tool server takes that of its running server")
        options: dict[str, Any] = {"cpu_only": cpu_only, "on_busy_gpu": on_busy_gpu, "stage_s": stage_seconds}
        if launcher is Launcher.nodes:
            _show(run_on_nodes(node or (), options, ranks_per_node=here, ports=ports, shown=shown), shown, "cluster")
            return
        site = SiteOptions(
            launcher, tuple(node or ()), nodes, python, address, here, ports, cpu_only, on_busy_gpu, stage_seconds,
            deadline or 1800.0, kube, kube_context, namespace, image, host_network,
        )  # fmt: skip
        _show(run_on_site(site, shown), shown, "cluster")
        return
    arguments = {
        "ranks": ranks,
        "python": python,
        "pid": pid,
        "master": master,
        "first_rank": first_rank,
        "here": here,
        "stage_s": stage_seconds,
        "cpu_only": cpu_only,
        "bisect": bisect,
        "on_busy_gpu": on_busy_gpu,
    }
    _act("run_nccl_test", arguments, shown, "nccl")


@app.command("compile")
def compile_(
    python: PythonOption = None,
    pid: PidOption = None,
    node: NodeNameOption = None,
    lang: LangOption = None,
    output: OutputOption = Output.text,
    yes: YesOption = False,
    exit_code: ExitCodeOption = False,
) -> None:
    """Compile a small function with torch.compile, and read Inductor's error where it fails."""
    import tools.sanity.compiling  # noqa: F401 (declares the action)

    _act("run_compile_test", {"python": python, "pid": pid}, _shown(output, lang, exit_code, yes), "compile", node=node)


@app.command()
def profile(
    target: Annotated[str, typer.Argument(help="the server's URL, or the name of a target")],
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, max=60, help="how long the profiler runs")] = 3.0,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="folder of the traces, where it cannot be found")
    ] = None,
    pid: PidOption = None,
    lang: LangOption = None,
    output: OutputOption = Output.text,
    yes: YesOption = False,
    exit_code: ExitCodeOption = False,
) -> None:
    """Start and stop the server's profiler, and name the top kernels and gaps of its trace."""
    import tools.profile  # noqa: F401 (declares the action)

    arguments = {"seconds": seconds, "trace_folder": str(trace.absolute()) if trace else None, "pid": pid}
    _act("profile_server", arguments, _shown(output, lang, exit_code, yes), "profile", target=target)


def capture(
    pid: PidOption = None,
    target: Annotated[str | None, typer.Option("--target", help="the server's URL, or the name of a target")] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="folder to write the redacted bundle into")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.2, max=30, help="time between the two looks")] = 2.0,
    lang: LangOption = None,
    output: OutputOption = Output.text,
    yes: YesOption = False,
    exit_code: ExitCodeOption = False,
) -> None:
    """Stacks and state of a stuck server, into a redacted bundle; the server stays alive."""
    import tools.capture.capture  # noqa: F401 (declares the action)

    arguments: dict[str, Any] = {"pid": pid, "seconds": seconds, "bundle": str(bundle.absolute()) if bundle else None}
    _act("capture", arguments, _shown(output, lang, exit_code, yes), "capture", target=target)


# --- carrying out -----------------------------------------------------------------------------------------------------


def _act(
    name: str,
    arguments: dict[str, Any],
    shown: Shown,
    heading: str,
    target: str | None = None,
    node: str | None = None,
) -> None:
    from tools.registry import get

    given = {key: value for key, value in arguments.items() if value is not None} | {"lang": shown.lang}
    action = get(name)
    if node is not None:
        from assistant.faces.cli.launching import run_on_node

        _consent(action, given, shown)  # the node wants its own confirmation besides
        _show(run_on_node(node, action, given, shown.deadline_s), shown, heading)
        return
    policy, address = _reach(target)
    if address is not None:
        given["url"] = address
    consent = _consent(action, given, shown)
    report = _performed(action, given, shown, policy, consent)
    _show(report, shown, heading)


def _reach(target: str | None) -> tuple[Any, str | None]:
    """What may be connected to, and the address of the target: a name of the targets file, or a URL given here."""
    from assistant.settings import SettingsError
    from assistant.settings import load as load_settings
    from assistant.targets import load_targets, policy_for
    from tools.addresses import AddressError, Allowance

    try:
        settings = load_settings()
        file = settings.text("targets_file")
        targets = load_targets(Path(file)) if file else {}
        if target is None:
            return policy_for(settings, targets), None
        if target in targets:
            return policy_for(settings, targets), targets[target].address
        return policy_for(settings, targets, Allowance.of(target)), target
    except SettingsError as error:
        fail(str(error))
    except AddressError as error:
        fail(f"--target {target!r} is neither a configured target nor a URL: {error}")


def _consent(action: Action, given: dict[str, Any], shown: Shown) -> Consent | None:
    """The person's agreement to a call that touches something: --yes, or an answer on a terminal."""
    if action.effect == "reads":
        return None
    from assistant.faces.cli.answering import catalogue
    from assistant.security.consent import agree
    from assistant.security.roles import LOCAL
    from tools.registry import InputError

    if not shown.yes:
        word = catalogue().word
        effect = word(f"confirm-{action.effect}", shown.lang)
        question = word("confirm-effect", shown.lang, title=action.title, effect=effect)
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            fail(f"{question} Nobody can be asked here; give --yes to agree.")
        if not typer.confirm(question, default=False):
            raise typer.Exit(2)
    try:
        return agree(LOCAL, action, given)
    except InputError as error:
        fail(str(error))


def _performed(action: Action, given: dict[str, Any], shown: Shown, policy: Any, consent: Consent | None) -> Any:
    from assistant.acting import perform
    from assistant.security.roles import LOCAL
    from tools.registry import ActionError, DeadlineError, InputError

    report = _progress() if sys.stderr.isatty() else None
    with noted() as notes:
        audit = notes.audit if action.effect != "reads" else None
        try:
            return asyncio.run(
                perform(
                    LOCAL,
                    action,
                    given,
                    face="cli",
                    policy=policy,
                    consent=consent,
                    report=report,
                    audit=audit,
                    deadline_s=shown.deadline_s,
                )
            )
        except InputError as error:
            fail(str(error))
        except DeadlineError as error:
            fail(str(error), 3)
        except ActionError as error:
            fail(str(error), 3)
        finally:
            if report is not None:
                sys.stderr.write("\r\x1b[K")


def _progress() -> Callable[[float | None, str], None]:
    def say(fraction: float | None, text: str) -> None:
        share = f"{fraction * 100:3.0f} % " if fraction is not None else ""
        sys.stderr.write(f"\r\x1b[K{share}{text[:90]}")
        sys.stderr.flush()

    return say


# --- showing ----------------------------------------------------------------------------------------------------------


def _diagnosis(report: Report, lang: str) -> Diagnosis:
    """What the engine makes of the facts, and of what the tested processes printed."""
    from dataclasses import replace

    from assistant.diagnosis.diagnose import Engine
    from assistant.diagnosis.gather import read_case
    from assistant.diagnosis.model import Case
    from assistant.faces.cli.answering import catalogue
    from tools.logs import LogInput
    from tools.sanity.results import reading_of

    known = catalogue()
    log = str(getattr(report, "log", ""))
    case = Case()
    if log.strip():
        case, _ = read_case(known, logs=[LogInput(name=report.tool, data=log.encode("utf-8", "replace"), pasted=True)])
    reading = case.reading + reading_of([report])
    return Engine(known).diagnose(replace(case, reading=reading, language="zh" if lang == "zh" else "en"))


def _show(report: Report, shown: Shown, heading: str) -> None:
    from assistant import __version__
    from assistant.faces.cli.answering import catalogue
    from assistant.render.blocks import Heading, diagnosis_blocks
    from assistant.render.checks import capture_blocks, nccl_blocks, report_blocks

    known = catalogue()
    lang: Any = shown.lang
    diagnosis = _diagnosis(report, shown.lang)
    found = diagnosis if diagnosis.verdict == "cause" else None
    if shown.output == "json":
        body = {
            "schema": 1,
            "report": report.model_dump(mode="json"),
            "diagnosis": diagnosis.to_json(engine=__version__) if found else None,
        }
        print(json.dumps(body, ensure_ascii=False, indent=2))
    else:
        special: dict[str, Any] = {"nccl": nccl_blocks, "capture": capture_blocks}
        blocks = list(
            special[heading](report, known, lang) if heading in special else report_blocks(report, known, lang, heading)
        )
        if found:
            blocks += [Heading(known.word("heading-sanity-diagnosis", lang)), *diagnosis_blocks(found, known)]
        if shown.output == "markdown":
            from assistant.render.markdown import to_markdown

            print(to_markdown(blocks), end="")
        else:
            from assistant.faces.cli.terminal import draw

            draw(blocks)
    if shown.exit_code:
        raise typer.Exit(EXIT[report.verdict])
