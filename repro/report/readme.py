"""The README's tables of results and claims, made from the records of one preset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from types import SimpleNamespace

from repro.catalogue import PAPER_NAMES, PAPERS, Preset, all_tables
from repro.evidence.comparison import CellComparison, compare
from repro.evidence.judgement import Judge, discovery_note, table_title
from repro.evidence.published import find_table
from repro.evidence.record import Record, read_records, records_in
from repro.project import project_root, reports_root
from repro.report.html import cell_name, markdown_table, plain, record_tag
from repro.report.pages import claims_file
from repro.report.summary import effects, summary_figure
from repro.report.verdict_views import count_text, effect_text, in_words, scope_text, tally
from repro.vocabulary import Paper

_RESULTS = ("table", "what the paper says", "what we find, in our data", "n", "page")
_CLAIMS = ("paper", "claims", "in the paper's setting", "in our data, or over the measured part")


def measured_records(preset: Preset) -> dict[str, Record]:
    """The records of a preset that hold rows, by table id, in the catalogue's order."""
    found = records_in(reports_root() / preset)
    order = {table.id: place for place, table in enumerate(all_tables())}
    ids = sorted((id for id, record in found.items() if record.rows), key=lambda id: order.get(id, len(order)))
    return {id: found[id] for id in ids}


def results_table(preset: Preset, judge: Judge) -> str:
    """One row per table with a judged claim: its sentence, the verdict with the deciding comparison, n and the page."""
    rows = [row for id in judge.measured.records if (row := _result_row(id, preset, judge))]
    return markdown_table(_RESULTS, rows) if rows else f"No record of the {preset} preset exists yet.\n"


def claims_table(preset: Preset, judge: Judge) -> str:
    """One row per paper: how many of its claims are supported, contradicted, inconclusive, not run."""
    rows = []
    for paper in PAPERS:
        verdicts = judge.claims(paper)
        words = [in_words(found) for found in tally(verdicts)]
        rows.append([f"[{PAPER_NAMES[paper]}](reports/{preset}/{claims_file(paper)})", str(len(verdicts)), *words])
    return markdown_table(_CLAIMS, rows)


def _result_row(id: str, preset: Preset, judge: Judge) -> list[str] | None:
    """The claim that is most about this table, with the comparison of this table's cells that decides it."""
    found = [(verdict, part) for verdict in judge.claims_of_table(id) if (part := verdict.deciding_in(id))]
    if not found:
        return None
    verdict, part = min(found, key=lambda pair: len({c.table for p in pair[0].parts for c in p.requirement.cells}))
    assert part.quantity is not None and part.judged is not None
    effect = f"**{part.judged.word}** — {effect_text(part)}"
    quote = shorten(verdict.claim.quote, 96, placeholder=" …")
    page = f"[page](reports/{preset}/{id}/index.html)"
    return [f"`{id}`", f"“{plain(quote)}”", plain(effect), count_text(part.quantity, judge.measured.records[id]), page]


# The README's speed tables, made from the committed records of the benchmarks (`benchmarks/speed_record.py`).

_COLUMNS = ("what", "ours", "peer", "ratio [range over rounds]", "demanded", "met", "threads")
NOTHING = "No benchmark has been run on an idle machine yet: `make bench` does it.\n"


def load_speed_records() -> list[SimpleNamespace]:
    """The committed records of all benchmarks, by name."""
    paths = sorted((project_root() / "benchmarks" / "results").glob("*.json"))
    return [json.loads(path.read_text("utf-8"), object_hook=lambda found: SimpleNamespace(**found)) for path in paths]


def speed_table(records: Sequence[SimpleNamespace]) -> str:
    """How many demands are met, then one table per benchmark under a line that names its hardware and file.

    Every comparison is a row; a demand that is not met says so.
    """
    demands = [found.met for record in records for found in record.comparisons if found.met is not None]
    if not records:
        return NOTHING
    head = f"{sum(demands)} of {len(demands)} demands are met.\n"
    return "\n".join([head, *(_section(record) for record in records)])


_SHORT = (
    ("explain", "Score-CAM, ResNet-18, few dead channels, repro fp32", "pytorch-grad-cam"),
    ("explain", "Score-CAM, ResNet-18, few dead channels, repro bf16", "pytorch-grad-cam"),
    ("explain", "Grad-CAM, ResNet-18, few dead channels", "captum"),
    ("explain", "Score-CAM, ResNet-18, few dead channels, memory", "torchcam"),
    ("localisation", "boxes at all thresholds, cam maps", ""),
    ("localisation", "PxAP", ""),
    ("ega_step", "EGA training step", ""),
    ("dfg_step", "DFG iteration", ""),
)
"""The rows of the README's speed table: benchmark, what was measured, and the peer; on one thread."""


def short_speed_table(records: Sequence[SimpleNamespace]) -> str:
    """At most eight rows that matter, and how many demands are met in all."""
    found = [
        next(
            (
                row
                for record in records
                for row in record.comparisons
                if record.name == name
                and row.name.startswith(what)
                and row.peer_label.startswith(peer)
                and row.threads == 1
            ),
            None,
        )
        for name, what, peer in _SHORT
    ]
    met = [row.met for record in records for row in record.comparisons if row.met is not None]
    rows = [_speed_row(row)[:4] for row in found if row is not None]
    if not rows:
        return NOTHING
    return f"{sum(met)} of {len(met)} demands are met; all rows: [docs/speed.md](docs/speed.md).\n\n" + markdown_table(
        _COLUMNS[:4], rows
    )


def _section(record: SimpleNamespace) -> str:
    facts = record.environment
    where = facts.processor if facts.device == "CPU" else f"{facts.device}, host {facts.processor}"
    versions = ", ".join(f"{name} {version}" for name, version in vars(facts.libraries).items())
    commit = f", commit {facts.commit[:10]}{' with changes' if facts.dirty else ''}" if facts.commit else ""
    source = f"[{record.name}](../benchmarks/results/{record.name}.json)"
    line = f"{source} — {plain(where)}; {plain(versions)}; {facts.date}{commit}\n"
    return "\n".join([line, markdown_table(_COLUMNS, [_speed_row(found) for found in record.comparisons])])


def _speed_row(found: SimpleNamespace) -> list[str]:
    peer = found.peer_label if found.peer is None else f"{found.peer_label}: {_number(found.peer)} {found.unit}"
    return [
        plain(found.name),
        f"{_number(found.ours)} {found.unit}",
        plain(peer),
        _ratio(found),
        _bar(found),
        {True: "yes", False: "**no**", None: "–"}[found.met],
        str(found.threads),
    ]


def _ratio(found: SimpleNamespace) -> str:
    if found.peer is None:
        return "–"
    spread = "" if found.ratio_low is None else f" [{found.ratio_low:.3g}, {found.ratio_high:.3g}]"
    return f"{found.ratio:.3g}{spread} ({found.ratio_is})"


def _bar(found: SimpleNamespace) -> str:
    if found.bar is None:
        return "–"
    unit = f" {found.unit}" if found.peer is None else ""
    return f"{'≥' if found.ratio_is == 'peer / ours' else '≤'} {found.bar:g}{unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# `RESULTS.md`: the answers of the quick and the paper preset, generated from their records and never typed.

PRESETS: tuple[Preset, ...] = ("paper", "quick")
_HEAD = """# Results

Generated by `repro report` from the records in `reports/`; do not edit. Every claim has two answers: *in the paper's
setting* (its data, network and size) and *in our data*, which asks only for the ordering or direction where the run
used something else. Brackets are 95 % intervals. How they are made: [statistics](docs/statistics.md); what the words
mean: [verdicts](docs/verdicts.md). A record is named by the first digits of its run's id and of its file's SHA-256.
"""


def results_text() -> str:
    """What `RESULTS.md` holds, by today's records."""
    sections = [text for preset in PRESETS if (text := _preset_section(preset))]
    return "\n".join([_HEAD, *(sections or ["No record of the quick or the paper preset exists yet.\n"])])


def _preset_section(preset: Preset) -> str:
    records = measured_records(preset)
    left_out = read_records(reports_root() / preset)[1]
    notes = [f"- left out: `reports/{preset}/{id}`: {plain(problem)}\n" for id, problem in left_out.items()]
    if not records and not notes:
        return ""
    judge = Judge(records)
    papers = [_paper_section(paper, judge) for paper in PAPERS if any(id.startswith(f"{paper}/") for id in records)]
    return "\n".join([f"## The {preset} preset\n", *notes, *papers])


def _paper_section(paper: Paper, judge: Judge) -> str:
    verdicts = judge.claims(paper)
    own, judged = tally(verdicts)
    lines = [f"### {paper}\n", f"{len(verdicts)} claims in the paper's setting: {in_words(own)}.\n"]
    if judged:
        text = f"In our data, or over the part that was measured: {in_words(judged)}. {discovery_note(verdicts)}"
        lines.append(text.strip() + "\n")
    shown = [v for v in verdicts if v.judged is not None]
    rows = [
        [plain(cell) for cell in (v.claim.id, v.claim.quote, v.verdict.label, scope_text(v) or "–", v.reason)]
        for v in shown
    ]
    lines.append(markdown_table(("claim", "the paper says", "in its setting", "in our data", "why"), rows))
    lines += [_record_section(record) for id, record in judge.measured.records.items() if id.startswith(f"{paper}/")]
    return "\n".join(lines)


def _record_section(record: Record) -> str:
    title = table_title(record.id) if find_table(record.id) else record.title
    ran = ", ".join(sorted({f"{row.dataset} / {row.network or 'no network'}" for row in record.rows}))
    commit = record.provenance.commit
    source = f"commit {commit[:10]}{' with changes' if record.provenance.dirty else ''}" if commit else "no commit"
    lines = [
        f"#### {title}\n",
        f"`repro run {record.id} --preset {record.preset}` — {ran}; {source};",
        f"[report](reports/{record.preset}/{record.id}/index.html), "
        f"[record](reports/{record.preset}/{record.id}/result.json) {record_tag(record)}.\n",
    ]
    cells = [cell for cell in compare(record) if cell.ours is not None and cell.published is not None]
    if cells:
        lines.append(markdown_table(("row", "metric", "paper", "ours"), [_cell_row(cell) for cell in cells]))
    lines += [f"- {plain(finding)}" for finding in record.findings]
    return "\n".join([*lines, ""])


def _cell_row(cell: CellComparison) -> Sequence[str]:
    unit = f" ({cell.unit})" if cell.unit else ""
    return [
        plain(text) for text in (cell_name(cell), f"{cell.metric_label}{unit}", cell.published_text, cell.ours_text)
    ]


# The generated parts of `README.md`, each between two markers: results, claims, speed and data.

SHOWN: Preset = "quick"
"""The preset whose records the README shows; `RESULTS.md` shows all."""


DOCUMENTS = {"README.md": ("claims", "results", "speed"), "docs/speed.md": ("benchmarks",), "docs/data.md": ("data",)}
"""Which generated sections stand in which document, each between its two markers."""


def readme_texts(data_sets: Sequence[Mapping[str, str]]) -> dict[Path, str]:
    """`RESULTS.md`, the summary figures, and every document with what belongs between its markers, by path.

    `data_sets` are the rows of `repro data list`.

    Raises:
        ValueError: a pair of markers is missing.
    """
    root, judge = project_root(), Judge(measured_records(SHOWN))
    sections = generated_sections(data_sets, judge)
    texts = {root / "RESULTS.md": results_text()}
    for document, names in DOCUMENTS.items():
        text = (root / document).read_text(encoding="utf-8")
        for name in names:
            text = replace_section(text, name, sections[name])
        texts[root / document] = text
    return texts | {root / path: figure for path, figure in summary_figures(judge).items()}


def summary_figures(judge: Judge) -> dict[str, str]:
    """The SVG text of each paper's figure, by its path in the project."""
    figures = {paper: summary_figure(PAPER_NAMES[paper], effects(judge.claims(paper))) for paper in PAPERS}
    return {f"docs/images/claims-{paper}.svg": figure for paper, figure in figures.items() if figure}


def generated_sections(data_sets: Sequence[Mapping[str, str]], judge: Judge) -> dict[str, str]:
    """What belongs between the markers, by section."""
    records = load_speed_records()
    return {
        "claims": claims_table(SHOWN, judge),
        "results": results_table(SHOWN, judge),
        "speed": short_speed_table(records),
        "benchmarks": speed_table(records),
        "data": data_table(data_sets),
    }


def data_table(data_sets: Sequence[Mapping[str, str]]) -> str:
    """Every data set with its size, licence and the way to get it, as `repro data list` says it."""
    rows = [
        [_name(entry), *(plain(entry[key]) or "–" for key in ("title", "splits", "licence", "get"))]
        for entry in data_sets
    ]
    return markdown_table(("name", "what", "images", "licence", "how to get it"), rows)


def _name(entry: Mapping[str, str]) -> str:
    home = entry["homepage"]  # of what is rendered here: the file that does it
    return f"[{entry['name']}]({home if '://' in home else f'../{home}'})"


def read_section(text: str, name: str) -> str:
    """What stands between a section's markers.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = _markers(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"README: expected the markers '{begin}' and '{end}' once each; put them back")
    return text.partition(begin)[2].partition(end)[0].strip("\n") + "\n"


def replace_section(text: str, name: str, content: str) -> str:
    """`text` with another content between a section's markers; raises as `read_section`."""
    read_section(text, name)
    begin, end = _markers(name)
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{content}\n{end}{rest.partition(end)[2]}"


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin (generated by `repro report`, do not edit) -->", f"<!-- {name}:end -->"
