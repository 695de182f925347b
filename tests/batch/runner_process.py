"""A batch runner in a process of its own, for tests that kill it."""

import multiprocessing as mp
from multiprocessing.process import BaseProcess

import psutil

from repro.batch.runner import Runner, make_jobs
from repro.catalogue import all_tables


def work(environment: dict[str, str], images: int) -> None:
    """Run every notebook of the project, two at a time."""
    import os

    os.environ |= environment
    Runner(jobs_at_once=2).run(make_jobs(all_tables(), "smoke", {"images": images}))


def start(environment: dict[str, str], images: int) -> BaseProcess:
    """Start the runner; imports happened once, in the fork server."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["repro.batch.runner"])
    process = context.Process(target=work, args=(environment, images))
    process.start()
    return process


def descendants(kind: str) -> list[psutil.Process]:
    """Living workers (`repro.batch.worker`) or kernels (`ipykernel_launcher`) below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if kind in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
