"""The cluster that a run starts for itself."""

import pytest

import clusters.session
from actors.clock import PhaseClock
from engine.config import load
from engine.planning.federation import Federation
from engine.run.context import RunContext
from engine.run.hosting import open_runner
from engine.store.folder import RunFolder


class Asked(Exception):
    """Stops the run where the cluster would start."""


@pytest.mark.parametrize(("preset", "dashboard"), [("fedavg-digits", False), ("mosaic-lean-digits", True)])
def test_a_cluster_of_ones_own_has_a_dashboard_where_ray_train_will_run(tmp_path, monkeypatch, preset, dashboard):
    def note(address, **wishes):
        raise Asked(wishes["dashboard"])

    monkeypatch.setattr(clusters.session, "attach_or_start", note)
    monkeypatch.setattr("engine.run.hosting._starts_its_own", lambda address: True)
    federation = Federation.gather(load(preset, ("runner.kind=ray",)))
    run = RunContext(federation, RunFolder.create(tmp_path / "run"), preset, PhaseClock("start:data"))
    with pytest.raises(Asked, match=str(dashboard)), open_runner(run):
        pass
