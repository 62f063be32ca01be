"""How the distillation's benchmark comes from what it hears to the time of a step."""

from benchmarks import distillation
from tests.distil_toys import toy_job


def test_a_step_is_timed_from_a_third_on_and_the_rest_is_setting_up(monkeypatch):
    """Nine steps: three of 5 s, six of 2 s, and 30 s until the job gives its result."""
    now = 0.0
    monkeypatch.setattr(distillation.time, "perf_counter", lambda: now)

    def perform(job, told):
        nonlocal now
        for done in range(job.steps):
            told(done)
            now += 5 if done < 3 else 2
        now += 30
        told(job.steps)

    pace = distillation.pace(perform, toy_job(steps=9, distinct=9))
    assert pace.step_ms == 2000
    assert pace.setup_s == 15 + 12 + 30 - 9 * 2
