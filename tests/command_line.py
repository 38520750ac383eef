"""Commands in processes of their own, forked from a server that has imported torch already.

``python -m hscc_search.cli`` takes three seconds of imports, and the tests start some hundred commands. A forked
command does, prints and leaves behind the same; ``test_install.py`` runs the installed command itself.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
# Libraries alone, and what of the package holds no console: that looks at the standard output when it is imported.
FORKS.set_forkserver_preload(
    [
        "fvcore.nn",
        "imagehash",
        "optuna",
        "plotly.graph_objects",
        "scipy.stats.qmc",
        "sklearn.cluster",
        "sklearn.datasets",
        "torch.onnx",
        "onnxruntime",
        "onnxscript",
        "hscc_search.search.study",
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


def start(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Command:
    """Start ``hscc-search`` with some arguments in a folder."""
    folder = Path(tempfile.mkdtemp(prefix="hscc-command-"))
    outputs = (folder / "stdout", folder / "stderr")
    for path in outputs:
        path.touch()
    environment = {**os.environ, **(env or {})}
    process = FORKS.Process(target=_run, args=([*map(str, arguments)], str(cwd), environment, [*map(str, outputs)]))
    process.start()
    return Command(process, outputs)


def _run(arguments: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(outputs, start=1):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.argv = ["hscc-search", *arguments]
    from hscc_search.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
