"""Claims: the printed numbers fed back, each kind against verdicts made by hand, and faulty entries refused."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from repro.catalogue import PAPERS
from repro.evidence.claims import Claim, Exceeds, claims_for, load_claims, load_paper_claims
from repro.evidence.decisions import decide
from repro.evidence.published import CellAddress, load_published, published_table, rounding_interval
from repro.evidence.statistics import Estimate, interval_difference

CLAIMS = [claim for paper in PAPERS for claim in load_claims(paper)]
PRINTED = {table.address(cell): cell for paper in PAPERS for table in load_published(paper) for cell in table.cells}
PUBLISHED = {address: cell.value for address, cell in PRINTED.items()}
EXPECTED = {True: {"supported"}, False: {"contradicted", "inconclusive"}, None: {"not_run"}}
PAPER_CONTRADICTS_ITSELF = {
    *("ega.c01b", "ega.c01d", "ega.c02", "ega.c03b", "ega.c03c", "ega.c11", "ega.c12b", "ega.c26"),
    "dfg.c05c",
    *("scorecampp.c03b", "scorecampp.c19", "scorecampp.c20a", "scorecampp.c20b"),
}
ORDER = ("contradicted", "not_run", "inconclusive", "supported")


def half(printed):
    low, high = rounding_interval(printed)
    return (high - low) / 2


def recomputed(requirement, numbers):
    """The paper held against itself: orderings as printed, quoted numbers within their printed digits."""
    if any(cell not in numbers for cell in requirement.cells):
        return "not_run"
    first, *second = (numbers[cell] for cell in requirement.cells)
    value = first - sum(second)
    if isinstance(requirement, Exceeds):
        ahead = round(value - requirement.margin, 9)
        return "supported" if ahead > 0 else "contradicted" if ahead < 0 else "inconclusive"
    reach = half(requirement.quoted) + sum(half(PRINTED[cell].printed) for cell in requirement.cells)
    return "supported" if abs(value - float(requirement.quoted)) <= reach + 1e-9 else "contradicted"


def statuses(numbers):
    return {c.id: min((recomputed(part, numbers) for part in c.requirements), key=ORDER.index) for c in CLAIMS}


BASE = statuses(PUBLISHED)
DEPENDENTS: dict[CellAddress, set[str]] = {}
for each in CLAIMS:
    for address in each.cells():
        DEPENDENTS.setdefault(address, set()).add(each.id)


def flipped(address, by):
    now = statuses(PUBLISHED | {address: PUBLISHED[address] + by})
    return {claim for claim, status in now.items() if status != BASE[claim]}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_the_papers_own_numbers(claim):
    assert BASE[claim.id] in EXPECTED[claim.published_supports]


def test_the_claims_that_the_papers_own_numbers_refute():
    assert {claim for claim, status in BASE.items() if status == "contradicted"} == PAPER_CONTRADICTS_ITSELF


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_rest_on_cells_that_exist_in_the_printed_direction(claim):
    for cell in claim.cells():
        assert cell in set(published_table(cell.table).grid()), f"{cell} is on no grid"
    for metric, direction in getattr(claim.test, "metrics", {}).items():
        better = published_table(claim.tables[0]).metrics[metric].better
        if better != "neither" and direction in ("lower", "higher"):
            assert direction == better


@pytest.mark.parametrize("paper", PAPERS)
def test_abstract_and_conclusion_are_covered(paper):
    claims = load_claims(paper)
    conclusion = "§7" if paper == "scorecampp" else "§5, "
    assert len({claim.id[:-1] if claim.id[-1].isalpha() else claim.id for claim in claims}) >= 12
    for part in ("Abstract", conclusion):
        assert any(place.startswith(part) for claim in claims for place in [claim.place, *claim.also])
    assert load_paper_claims(paper).not_encoded


@pytest.mark.parametrize("address", sorted(set(DEPENDENTS) & set(PUBLISHED)), ids=str)
def test_a_ruined_number_flips_exactly_the_claims_that_depend_on_it(address):
    either = flipped(address, 1e4) | flipped(address, -1e4)
    assert either <= DEPENDENTS[address]
    assert {claim for claim in DEPENDENTS[address] if BASE[claim] == "supported"} <= either


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PUBLISHED)), st.floats(-60, 60))
def test_no_other_claim_ever_moves(address, by):
    assert flipped(address, by) <= DEPENDENTS.get(address, set())


def toy(kind, **test):
    text = {"id": "ega.c99", "quote": "q", "place": "p", "kind": kind, "table": "ega/toy", "about": "network"}
    return Claim.model_validate(text | {"test": test})


def verdicts(claim, numbers):
    """Every part's verdict from single intervals; names are methods, or values of the setting x."""
    found = {}
    for name, interval in numbers.items():
        row = ("a", "e", {"x": name}) if isinstance(name, int) else (name, "e", {})
        found[CellAddress.of("ega/toy", *row)] = Estimate(*interval, n=3)
    quantities = []
    for part in claim.requirements:
        first, *second = (found[cell] for cell in part.cells)
        quantities.append(interval_difference(first, second[0]) if second else first)
    answers = [decide(q, part.region) for q, part in zip(quantities, claim.requirements, strict=True)]
    return min(answers, key=ORDER.index), quantities[0]


def near(value):
    return (value, value - 0.1, value + 0.1)


@pytest.mark.parametrize(
    ("a", "b", "status", "advantage"),
    [
        ((10, 9, 11), (20, 19, 21), "supported", (10, 8, 12)),
        ((20, 19, 21), (10, 9, 11), "contradicted", (-10, -12, -8)),
        ((10, 9, 11), (13, 11, 15), "inconclusive", (3, 0, 6)),
        ((10, 9, 11), (10.5, 10, 10.9), "inconclusive", (0.5, -1, 1.9)),
    ],
)
def test_ordering_by_hand(a, b, status, advantage):
    claim = toy("ordering", metrics={"e": "lower"}, better="a", than=["b"], margin=1.0)
    answer, quantity = verdicts(claim, {"a": a, "b": b})
    assert answer == status
    assert (quantity.value, quantity.low, quantity.high) == pytest.approx(advantage)


@pytest.mark.parametrize(
    ("a", "status"),
    [((46.0, 45.5, 46.5), "supported"), ((46.0, 45.0, 47.0), "inconclusive"), ((48.0, 47.5, 48.5), "contradicted")],
)
def test_value_by_hand(a, status):
    claim = toy("value", metric="e", method="a", quoted="46.3", tolerance=1.0)
    assert verdicts(claim, {"a": a})[0] == status


@pytest.mark.parametrize(("direction", "quoted"), [("lower", "2"), ("higher", "-2")])
def test_a_gap_is_positive_in_the_better_direction(direction, quoted):
    claim = toy("gap", metric="e", direction=direction, better="a", than="b", quoted=quoted, tolerance=0)
    assert verdicts(claim, {"a": near(1.0), "b": near(3.0)})[0] == "supported"
    assert verdicts(claim, {"a": near(3.0), "b": near(1.0)})[0] == "contradicted"


@pytest.mark.parametrize(
    ("values", "status"), [((1, 2, 3), "supported"), ((1, 3, 2), "contradicted"), ((1, 2, 2.05), "inconclusive")]
)
def test_trend_by_hand(values, status):
    claim = toy("trend", metrics={"e": "increasing"}, method="a", along=[{"x": 1}, {"x": 2}, {"x": 3}])
    assert verdicts(claim, {x: near(value) for x, value in enumerate(values, 1)})[0] == status


@pytest.mark.parametrize(("best", "status"), [(5.0, "supported"), (2.0, "contradicted"), (3.1, "inconclusive")])
def test_best_setting_by_hand(best, status):
    claim = toy("best_setting", metrics={"e": "higher"}, method="a", best={"x": 3}, among=[{"x": 1}, {"x": 2}])
    assert verdicts(claim, {1: near(1.0), 2: near(3.0), 3: near(best)})[0] == status


def test_rank_by_hand():
    claim = toy("rank", metrics={"e": "lower"}, method="a", rank=2, behind=["w"], ahead_of=["l"])
    assert verdicts(claim, {"w": near(1), "a": near(2), "l": near(3)})[0] == "supported"
    assert verdicts(claim, {"w": near(5), "a": near(2), "l": near(3)})[0] == "contradicted"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "feeling"}, "kind must be one of"),
        ({"quote": "word " * 26}, "at most 25 words"),
        ({"published_supports": False}, "say why"),
        ({"colour": "red"}, "extra_forbidden"),
        ({"test": {"metrics": {"e": "lower"}, "method": "a", "rank": 1, "behind": ["b"]}}, "rank must be"),
    ],
)
def test_faulty_claims_are_refused(change, message):
    good = yaml.safe_load(
        "{id: ega.c99, quote: q, place: p, kind: rank, about: network, table: ega/toy,"
        " test: {metrics: {e: lower}, method: a, rank: 1, ahead_of: [b]}}"
    )
    Claim.model_validate(good)
    with pytest.raises(ValidationError) as error:
        Claim.model_validate(good | change)
    assert message in f"{error.value} {error.value.errors()}"


def test_claims_for_finds_claims_that_reach_into_the_table():
    ids = {claim.id for claim in claims_for("ega/table6_components")}
    assert {"ega.c04", "ega.c40a", "ega.c46"} <= ids
    assert "ega.c45" not in ids
