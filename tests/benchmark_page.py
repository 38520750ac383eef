"""The page of a study of 10,000 trials: seconds and bytes. Run by `make benchmark-page`.

Prints how long the server takes for the page, for a refresh with ten new trials and for one without news, and the
bytes of each, packed as browsers ask for them; how long a browser takes until the figure is drawn; the size of the
frozen page of 500 trials; and the server's memory after 100 and 1,000 refreshes, every fiftieth with a new trial.
"""

import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import browser
from asking import ask
from benchmark_search import fill, seconds_of
from playwright.sync_api import sync_playwright

from hscc_search.config import StudyConfig
from hscc_search.report.live import application
from hscc_search.report.page import Page, frozen_page
from hscc_search.study.stored_study import read_study
from hscc_search.study.study import run_study

MANY, FROZEN, REFRESHES = 10_000, 500, int(os.environ.get("REFRESHES", "1000"))


def packed(server, path, query=""):
    """The body that a browser gets."""
    return ask(server, path, query, HTTP_ACCEPT_ENCODING="gzip")[2]


def memory():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main():
    with tempfile.TemporaryDirectory() as folder:
        config = StudyConfig.from_file("digits", storage=f"sqlite:///{folder}/studies.db", trials=20)
        run_study(config, "cpu")
        fill(config, FROZEN)
        page = Path(folder) / "front.html"
        Page(frozen_page(read_study(config.storage, "digits"), "sqlite:///studies.db")).write(page)
        print(f"frozen page of {FROZEN} trials: {page.stat().st_size / 1e6:.2f} MB", flush=True)
        fill(config, MANY)
        server = application(config.storage)
        first, _ = seconds_of(lambda: packed(server, "/front/digits"))
        again, content = seconds_of(lambda: packed(server, "/front/digits"))
        whole = len(ask(server, "/front/digits")[2])
        print(
            f"page of {MANY} trials: {first:.2f} s, again {again:.2f} s, {whole / 1e6:.2f} MB, packed "
            f"{len(content) / 1e6:.2f} MB",
            flush=True,
        )
        fill(config, MANY + 10)
        known = f"known=0-{MANY - 1}"
        seconds, news = seconds_of(lambda: packed(server, "/data/digits", known))
        whole = len(ask(server, "/data/digits", known)[2])
        print(f"refresh with ten new ones: {seconds:.2f} s, {whole / 1e3:.0f} kB, packed {len(news) / 1e3:.0f} kB")
        known = f"known=0-{MANY + 9}"
        seconds, news = seconds_of(lambda: packed(server, "/data/digits", known))
        whole = len(ask(server, "/data/digits", known)[2])
        print(
            f"refresh without news: {seconds:.2f} s, {whole / 1e3:.0f} kB, packed {len(news) / 1e3:.0f} kB", flush=True
        )
        with sync_playwright() as playwright:
            started = playwright.chromium.launch(executable_path=browser.find(), args=["--no-sandbox"])
            tab = started.new_page()
            Page(frozen_page(read_study(config.storage, "digits"), "sqlite:///studies.db")).write(page)
            drawing, _ = seconds_of(
                lambda: (tab.goto(page.as_uri()), tab.wait_for_selector("#front .scatterlayer .trace"))
            )
            print(f"drawn by a browser in {drawing:.2f} s", flush=True)
            started.close()
        refreshes(config, server)


def refreshes(config, server):
    """Print the memory of a server over many refreshes, of which every fiftieth has a new trial."""
    before, began = memory(), time.perf_counter()
    at_hundred = before
    # What fills the study reads it with Optuna, in a process of its own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for count in range(1, REFRESHES + 1):
            if count % 50 == 0:
                pool.submit(fill, config, MANY + 10 + count // 50).result()
            packed(server, "/data/digits", f"known=0-{MANY + 9}")
            if count == 100:
                at_hundred = memory()
    seconds = (time.perf_counter() - began) / max(REFRESHES, 1)
    print(
        f"memory: {before:.0f} MB before, {at_hundred:.0f} MB after 100 refreshes, {memory():.0f} MB after {REFRESHES}"
    )
    print(f"{seconds:.2f} s each, with what fills the study")


if __name__ == "__main__":
    main()
