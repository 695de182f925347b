"""Claims: the published numbers fed back, faults injected into them, and each kind against hand-computed verdicts."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from repro.evidence.claims import (
    Claim,
    claims_for,
    load_claims,
    load_paper_claims,
    lookup_in,
    published_estimates,
)
from repro.evidence.intervals import Estimate
from repro.evidence.published import PAPERS, CellAddress, published_table

CLAIMS = [claim for paper in PAPERS for claim in load_claims(paper)]
PUBLISHED = published_estimates()
EXPECTED = {True: {"supported"}, False: {"contradicted", "inconclusive"}, None: {"not_run"}}
PAPER_CONTRADICTS_ITSELF = {
    *("ega.c01b", "ega.c01d", "ega.c02", "ega.c03b", "ega.c03c", "ega.c11", "ega.c12b", "ega.c26"),
    "dfg.c05c",
    *("scorecampp.c03b", "scorecampp.c19", "scorecampp.c20a", "scorecampp.c20b"),
}


def statuses(numbers):
    lookup = lookup_in(numbers)
    return {claim.id: claim.evaluate(lookup, exact=True).status for claim in CLAIMS}


BASE = statuses(PUBLISHED)
DEPENDENTS: dict[CellAddress, set[str]] = {}
for each in CLAIMS:
    for address in each.cells():
        DEPENDENTS.setdefault(address, set()).add(each.id)
PRINTED_AND_CLAIMED = sorted(set(DEPENDENTS) & set(PUBLISHED))


def moved(address, by):
    old = PUBLISHED[address]
    return PUBLISHED | {address: Estimate(old.value + by, old.low + by, old.high + by, old.n)}


def flipped(address, by):
    now = statuses(moved(address, by))
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


@pytest.mark.parametrize("address", PRINTED_AND_CLAIMED, ids=str)
def test_a_ruined_number_flips_exactly_the_claims_that_depend_on_it(address):
    up, down = flipped(address, 1e4), flipped(address, -1e4)
    dependents = DEPENDENTS[address]
    assert up | down <= dependents
    assert {claim for claim in dependents if BASE[claim] == "supported"} <= up | down


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PRINTED_AND_CLAIMED), st.floats(-60, 60))
def test_no_other_claim_ever_moves(address, by):
    assert flipped(address, by) <= DEPENDENTS[address]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(set(PUBLISHED) - set(DEPENDENTS))), st.floats(-60, 60))
def test_numbers_without_claims_move_nothing(address, by):
    assert flipped(address, by) == set()


def test_no_numbers_no_verdicts():
    assert set(statuses({}).values()) == {"not_run"}


def toy(kind, **test):
    text = {"id": "ega.c99", "quote": "q", "place": "p", "kind": kind, "table": "ega/toy", "test": test}
    return TypeAdapter(Claim).validate_python(text)


def verdict(claim, exact=False, paired=None, **cells):
    numbers = {
        CellAddress.of("ega/toy", *name.split("__", 1)): Estimate(*interval, n=3) for name, interval in cells.items()
    }
    return claim.evaluate(lookup_in(numbers), exact=exact, paired=paired)


LOWER = toy("ordering", metrics={"e": "lower"}, better="a", than=["b"], margin=1.0)


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
    outcome = verdict(LOWER, a__e=a, b__e=b)
    assert outcome.status == status
    quantity = outcome.quantity
    assert (quantity.value, quantity.low, quantity.high) == pytest.approx(advantage)


def test_paired_differences_settle_what_separate_intervals_cannot():
    def paired(first, second):
        assert (first.method, second.method) == ("b", "a")
        return Estimate(3.0, 2.5, 3.5, 3)

    assert verdict(LOWER, paired=paired, a__e=(10, 9, 11), b__e=(13, 11, 15)).status == "supported"


def test_one_contradicted_part_outweighs_missing_ones_and_missing_ones_outweigh_doubt():
    claim = toy("ordering", metrics={"e": "higher"}, better="a", than=["b", "c"])
    assert verdict(claim, a__e=(1, 1, 1), b__e=(2, 2, 2)).status == "contradicted"
    outcome = verdict(claim, a__e=(3, 1, 5), b__e=(2, 2, 2))
    assert (outcome.status, outcome.quantity) == ("not_run", None)


VALUE = toy("value", metric="e", method="a", quoted="46.3", tolerance=1.0)


@pytest.mark.parametrize(
    ("a", "exact", "status"),
    [
        ((46.0, 45.5, 46.5), False, "supported"),
        ((46.0, 45.0, 47.0), False, "inconclusive"),
        ((48.0, 47.5, 48.5), False, "contradicted"),
        ((46.3, 46.25, 46.35), True, "supported"),
        ((46.4, 46.36, 46.44), True, "contradicted"),
    ],
)
def test_value_by_hand(a, exact, status):
    assert verdict(VALUE, exact=exact, a__e=a).status == status


@pytest.mark.parametrize(("direction", "quoted"), [("lower", "2"), ("higher", "-2")])
def test_a_gap_is_positive_in_the_better_direction(direction, quoted):
    claim = toy("gap", metric="e", direction=direction, better="a", than="b", quoted=quoted, tolerance=0)
    assert verdict(claim, exact=True, a__e=(1, 1, 1), b__e=(3, 3, 3)).status == "supported"
    assert verdict(claim, exact=True, a__e=(3, 3, 3), b__e=(1, 1, 1)).status == "contradicted"


def at(value, **setting):
    return CellAddress.of("ega/toy", "a", "e", setting), Estimate(value, value - 0.1, value + 0.1, 3)


@pytest.mark.parametrize(
    ("values", "status"), [((1, 2, 3), "supported"), ((1, 3, 2), "contradicted"), ((1, 2, 2.05), "inconclusive")]
)
def test_trend_by_hand(values, status):
    steps = [{"x": 1}, {"x": 2}, {"x": 3}]
    claim = toy("trend", metrics={"e": "increasing"}, method="a", along=steps)
    numbers = dict(at(value, **step) for value, step in zip(values, steps, strict=True))
    assert claim.evaluate(lookup_in(numbers)).status == status


@pytest.mark.parametrize(("best", "status"), [(5.0, "supported"), (2.0, "contradicted"), (3.1, "inconclusive")])
def test_best_setting_by_hand(best, status):
    rivals = [{"x": 1}, {"x": 2}]
    claim = toy("best_setting", metrics={"e": "higher"}, method="a", best={"x": 3}, among=rivals)
    numbers = dict([at(1.0, x=1), at(3.0, x=2), at(best, x=3)])
    assert claim.evaluate(lookup_in(numbers)).status == status


def test_rank_by_hand():
    claim = toy("rank", metrics={"e": "lower"}, method="a", rank=2, behind=["w"], ahead_of=["l"])
    assert verdict(claim, w__e=(1, 1, 1), a__e=(2, 2, 2), l__e=(3, 3, 3)).status == "supported"
    assert verdict(claim, w__e=(5, 5, 5), a__e=(2, 2, 2), l__e=(3, 3, 3)).status == "contradicted"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "feeling"}, "union_tag_invalid"),
        ({"quote": "word " * 26}, "at most 25 words"),
        ({"published_supports": False}, "say why"),
        ({"colour": "red"}, "extra_forbidden"),
        ({"test": {"metrics": {"e": "lower"}, "method": "a", "rank": 1, "behind": ["b"]}}, "rank must be"),
    ],
)
def test_faulty_claims_are_refused(change, message):
    good = yaml.safe_load(
        "{id: ega.c99, quote: q, place: p, kind: rank, table: ega/toy,"
        " test: {metrics: {e: lower}, method: a, rank: 1, ahead_of: [b]}}"
    )
    TypeAdapter(Claim).validate_python(good)
    with pytest.raises(ValidationError) as error:
        TypeAdapter(Claim).validate_python(good | change)
    assert message in f"{error.value} {error.value.errors()}"


def test_claims_for_finds_claims_that_reach_into_the_table():
    ids = {claim.id for claim in claims_for("ega/table6_components")}
    assert {"ega.c04", "ega.c40a", "ega.c46"} <= ids
    assert "ega.c45" not in ids
