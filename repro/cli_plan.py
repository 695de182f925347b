"""`repro plan`: predicted cost of tables on the device at hand."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

from repro.catalogue import Preset, Table
from repro.evidence.prediction import Plan, Prediction

GIBIBYTE = 2**30


def show_plan(tables: list[Table], preset: Preset, overrides: dict[str, object], steps: int, as_json: bool) -> None:
    """Calibrate, print a table (or JSON) and write `reports/<preset>/plan.json`.

    Raises:
        UserError: the parameters of a table are not valid.
    """
    from repro.planning import MODEL, make_plan

    quiet = Console(stderr=True, highlight=False, soft_wrap=True)
    plan = make_plan(
        tables, preset, overrides, steps, lambda table: quiet.print(f"calibrating {table.id} …", markup=False)
    )
    path = plan.save()
    console = Console(highlight=False, width=max(Console().width, 130))
    if as_json:
        print(plan.model_dump_json(indent=1))
        return
    console.print(plan_table(plan))
    for id, found in plan.tables.items():
        for note in found.notes:
            console.print(f"{id}: {note}", markup=False, soft_wrap=True)
    console.print(MODEL, markup=False, soft_wrap=True)
    console.print(
        "Not counted: starting kernels, making HTML, reading stored images, statistics over seeds. Trainings already "
        f"in the run store are counted as if they were not. Written to {path}",
        markup=False,
        soft_wrap=True,
    )


def plan_table(plan: Plan) -> RichTable:
    """One row per table and a sum."""
    found = RichTable(title=f"Predicted cost, {plan.preset} preset")
    found.add_column("table", no_wrap=True)
    for name in ("time", "interval", "GPU hours", "GPU memory", "host memory ≤", "disk"):
        found.add_column(name, justify="right", no_wrap=True)
    for id, one in plan.tables.items():
        found.add_row(id, *_cells(one))
    for id, reason in plan.refused.items():
        found.add_row(id, "cannot be calibrated", reason, *[""] * 4)
    known = list(plan.tables.values())
    if known:
        hours = None if any(one.gpu_hours is None for one in known) else sum(one.gpu_hours or 0 for one in known)
        found.add_section()
        found.add_row(
            "all, one after the other",
            duration(sum(one.seconds for one in known)),
            f"{duration(sum(one.low for one in known))} – {duration(sum(one.high for one in known))}",
            _hours(hours),
            "",
            "",
            size(sum(one.disk_bytes for one in known)),
        )
    return found


def _cells(one: Prediction) -> list[str]:
    memory = "no GPU here" if one.device_memory_bytes is None else size(one.device_memory_bytes)
    return [
        duration(one.seconds),
        f"{duration(one.low)} – {duration(one.high)}",
        _hours(one.gpu_hours),
        memory,
        size(one.host_memory_bytes),
        size(one.disk_bytes),
    ]


def _hours(hours: float | None) -> str:
    return "no GPU here" if hours is None else f"{hours:.1f}"


def duration(seconds: float) -> str:
    """In the largest unit that leaves a number above 1."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(count: int) -> str:
    """Bytes in GiB or MiB."""
    return f"{count / GIBIBYTE:.1f} GiB" if count >= GIBIBYTE else f"{count / 2**20:.1f} MiB"
