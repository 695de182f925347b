"""The ledger's DFG entries and the code agree."""

from repro.evidence.readings import load_readings, option_name
from repro.training.dfg_settings import DFGReadings


def test_every_field_is_in_the_ledger_with_its_paper_and_released_value() -> None:
    readings = [reading for reading in load_readings() if reading.id.startswith("dfg.")]
    presets = {"paper": DFGReadings.paper(), "released": DFGReadings.released()}
    for reading in readings:
        if reading.parameter is None:
            continue
        field = reading.parameter.rpartition(".")[2]
        for name, preset in presets.items():
            assert option_name(getattr(reading, name)) == option_name(getattr(preset, field)), (reading.id, name)
