"""Commands in processes of their own, forked from a server that has imported torch already.

``python -m hscc_search.cli`` takes three seconds of imports, and the tests start some hundred commands. A forked
command does, prints and leaves behind the same; ``test_install.py`` runs the installed command itself.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
# Libraries alone, and what of the package holds no console: that looks at the standard output when it is imported.
FORKS.set_forkserver_preload(
    [
        "alembic.migration",
        "fvcore.nn",
        "imagehash",
        "jinja2",
        "networkx",
        "onnxruntime",
        "onnxscript.function_libs.torch_lib.ops",
        "optuna",
        "plotly.graph_objects",
        "scipy.stats.qmc",
        "sklearn.cluster",
        "sklearn.datasets",
        "torch._dynamo",
        "torch.fx.experimental.symbolic_shapes",
        "torch.onnx.ops",
        "hscc_search.study.study",
    ]
)


@dataclass
class Command:
    """A command that runs.

    Attributes:
        process: that runs it.
        outputs: the files that take its standard output and its standard error.
    """

    process: BaseProcess
    outputs: tuple[Path, Path]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative where a signal ended it; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it as ``kill -9`` does, and wait until it is gone."""
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)
        self.process.join()

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait for its end, and return its standard output and its standard error."""
        self.process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise AssertionError(f"still running after {timeout} s\n" + "\n".join(self.printed()))
        return self.printed()

    def printed(self) -> tuple[str, str]:
        """Its standard output and standard error so far."""
        stdout, stderr = (path.read_text(encoding="utf-8") for path in self.outputs)
        return stdout, stderr


def start(*arguments: object, cwd: Path, env: dict[str, str] | None = None, answer: str = "") -> Command:
    """Start ``hscc-search`` with some arguments in a folder; ``answer`` is its standard input."""
    return _start(_command, [*map(str, arguments)], cwd, {**os.environ, **(env or {})}, answer)


def start_code(code: str, cwd: Path) -> Command:
    """Start a program in a folder, as ``python -c CODE`` does."""
    return _start(_program, code, cwd, dict(os.environ), "")


def _start(target: Callable[[Any], None], argument: object, cwd: Path, env: dict[str, str], answer: str) -> Command:
    folder = Path(tempfile.mkdtemp(prefix="hscc-command-"))
    streams = (folder / "stdin", folder / "stdout", folder / "stderr")
    for path in streams:
        path.write_text(answer if path.name == "stdin" else "", encoding="utf-8")
    process = FORKS.Process(target=_run, args=(target, argument, str(cwd), env, [*map(str, streams)]))
    process.start()
    return Command(process, streams[1:])


def _run(target: Callable[[Any], None], argument: Any, cwd: str, environment: dict[str, str], paths: list[str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(paths):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    try:
        target(argument)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _command(arguments: list[str]) -> None:
    sys.argv = ["hscc-search", *arguments]
    from hscc_search.cli import main

    main()


def _program(code: str) -> None:
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
