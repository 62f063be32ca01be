"""The variables that fix kernels, the kinds of processors, and what is said where portable bits cannot be had."""

import subprocess
import sys

import pytest

from clusters.bits import (
    PORTABLE,
    BitsError,
    ProcessStartError,
    environment_at_start,
    kind_of,
    missing_variables,
    require,
    shortcoming,
    worker_options,
)

CORE = {"model name": "Some  CPU @ 2.50GHz", "cpu family": "6", "model": "85", "flags": "fpu sse2 avx avx2 fma avx512f"}


@pytest.mark.parametrize(
    ("system", "machine", "flags", "lacks"),
    [
        ("Linux", "x86_64", ["avx2", "fma", "sse2"], ""),
        ("Linux", "x86_64", ["avx", "fma"], "a processor with AVX2 and FMA, and this one lacks avx2"),
        ("Linux", "x86_64", [], "a processor with AVX2 and FMA, and this one lacks avx2, fma"),
        ("Linux", "aarch64", [], "Linux on an x86-64 processor, and this is Linux on aarch64"),
        ("Darwin", "x86_64", ["avx2", "fma"], "Linux on an x86-64 processor, and this is Darwin on x86_64"),
    ],
)
def test_what_a_machine_lacks_for_portable_bits_is_named(system, machine, flags, lacks):
    assert shortcoming(system, machine, flags) == lacks


def test_a_variable_counts_as_missing_where_it_is_not_there_or_has_another_value():
    assert missing_variables(PORTABLE) == []
    assert missing_variables({**PORTABLE, "MKL_CBWR": "AVX2"}) == ["MKL_CBWR"]
    assert missing_variables({"HOME": "/"}) == list(PORTABLE)


def test_the_environment_is_that_of_the_start_whatever_was_set_since():
    code = (
        "import os; os.environ['MKL_CBWR'] = 'late'; from clusters.bits import environment_at_start as at_start; "
        "print(at_start()['MKL_CBWR'], os.environ['MKL_CBWR'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"MKL_CBWR": "early=1"}, capture_output=True, text=True)
    assert done.stdout == "early=1 late\n", done.stderr


def test_without_linux_the_environment_is_pythons(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    assert environment_at_start(tmp_path / "missing")["MKL_CBWR"] == "AUTO"


@pytest.mark.parametrize(
    ("change", "environment", "kind"),
    [
        ({}, {}, "Some CPU @ 2.50GHz, family 6, model 85, AVX-512"),
        ({"flags": "avx2 avx"}, {}, "Some CPU @ 2.50GHz, family 6, model 85, AVX2"),
        ({"flags": "sse2"}, {}, "Some CPU @ 2.50GHz, family 6, model 85"),
        ({"model": "86"}, {}, "Some CPU @ 2.50GHz, family 6, model 86, AVX-512"),
        (
            {},
            {"MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "default", "HOME": "/"},
            "Some CPU @ 2.50GHz, family 6, model 85, AVX-512, ATEN_CPU_CAPABILITY=default, MKL_CBWR=AVX2",
        ),
        ({}, dict(PORTABLE), "Some CPU @ 2.50GHz, family 6, model 85, AVX-512, portable bits"),
    ],
)
def test_a_kind_of_processor_is_its_model_its_widest_kernels_and_the_variables_that_choose_others(
    change, environment, kind
):
    assert kind_of({**CORE, **change}, environment) == kind


def test_native_bits_are_had_everywhere_and_portable_ones_in_a_process_started_for_them_alone(monkeypatch):
    monkeypatch.setattr("clusters.bits.shortcoming_here", lambda: "")
    monkeypatch.setattr("clusters.bits.environment_at_start", lambda: {**PORTABLE, "MKL_CBWR": "AVX2"})
    require("native")
    with pytest.raises(ProcessStartError, match=r"start Python as `env MKL_CBWR=COMPATIBLE python \.\.\.`"):
        require("portable")
    monkeypatch.setattr("clusters.bits.environment_at_start", lambda: dict(PORTABLE))
    require("portable")


def test_a_machine_that_cannot_compute_them_is_not_told_to_start_anew(monkeypatch):
    monkeypatch.setattr(
        "clusters.bits.shortcoming_here", lambda: "a processor with AVX2 and FMA, and this one lacks fma"
    )
    with pytest.raises(BitsError, match=r"lacks fma; leave runner\.bits at native here") as caught:
        require("portable")
    assert not isinstance(caught.value, ProcessStartError)


def test_workers_get_the_variables_for_portable_bits_and_nothing_for_native_ones():
    assert worker_options("native") == {}
    assert worker_options("portable") == {"runtime_env": {"env_vars": dict(PORTABLE)}}
