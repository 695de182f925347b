"""The row collector: counts samples, keys them as records look them up."""

from repro.evidence.comparison import sample_key
from repro.studies.rows import RowCollector


def test_samples_are_counted_and_found_by_their_rows_key() -> None:
    found = RowCollector()
    found.add("ega", "corloc_error", 50.0, dataset="cub", seed=1, setting={"network": "vgg16"}, samples=[0, 100])
    found.add("ega", "pxap_error", 41.5, dataset="cub", network="vgg16", n=7, unit="%")
    first, second = found.rows
    assert (first.n, first.value, second.n, second.unit, second.setting) == (2, 50.0, 7, "%", {})
    assert found.samples == {sample_key("ega", "corloc_error", 1, first.setting): [0, 100]}
