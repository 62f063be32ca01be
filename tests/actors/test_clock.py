"""Wall time by phase, with a clock that the test winds."""

from actors.clock import PhaseClock


def wound(*ticks):
    return iter(ticks).__next__


def test_every_moment_belongs_to_the_phase_entered_last():
    clock = PhaseClock("server", now=wound(0.0, 2.0, 7.0))
    clock.switch("evaluate")
    assert clock.read() == {"server": 2.0, "evaluate": 5.0}


def test_a_phase_inside_another_is_taken_out_of_it():
    clock = PhaseClock("server", now=wound(0.0, 1.0, 4.0, 10.0))
    with clock.during("client:train"):
        pass
    assert clock.read() == {"server": 1.0 + 6.0, "client:train": 3.0}


def test_an_error_inside_a_block_gives_the_phase_back():
    clock = PhaseClock("server", now=wound(0.0, 1.0, 4.0, 10.0))
    try:
        with clock.during("client:train"):
            raise KeyError
    except KeyError:
        pass
    assert clock.read()["server"] == 7.0


def test_every_time_that_a_phase_goes_on_is_told():
    told = []
    clock = PhaseClock("server", now=wound(0.0, 1.0, 4.0, 10.0), report=lambda *span: told.append(span))
    with clock.during("client:train"):
        pass
    clock.switch("evaluate")
    assert told == [("server", 0.0, 1.0), ("client:train", 1.0, 4.0), ("server", 4.0, 10.0)]
