"""What the devices can do."""

import pytest

from tfppo.computation.devices import has_bfloat16_tiles, has_fast_bfloat16, resolve_jit_compile, resolve_update_dtype


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("flags : fpu avx2 avx512f avx512_bf16 vmx", True),
        ("flags : fpu amx_bf16 amx_tile", True),
        ("flags : fpu avx avx2 f16c fma", False),
        ("", False),
    ],
)
def test_bfloat16_is_fast_where_the_processor_has_it(tmp_path, flags, fast):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\n{flags}\n")
    assert has_fast_bfloat16(path) is fast
    assert has_bfloat16_tiles(path) is ("amx" in flags)


def test_no_cpuinfo_is_no_bfloat16(tmp_path):
    assert has_fast_bfloat16(tmp_path / "missing") is False


def test_auto_takes_bfloat16_where_it_is_faster_and_a_name_is_taken_as_it_is(monkeypatch):
    for fast, width, expected in (
        (True, 256, "mixed_bfloat16"),
        (True, 255, "float32"),
        (False, 256, "float32"),
    ):
        monkeypatch.setattr("tfppo.computation.devices.has_fast_bfloat16", lambda fast=fast: fast)
        assert resolve_update_dtype("auto", width, "float32") == expected
        assert resolve_update_dtype("float32", width, "mixed_bfloat16") == "float32"
    assert resolve_update_dtype("auto", 64, "mixed_bfloat16") == "mixed_bfloat16"


def test_xla_compiles_all_but_bfloat16_on_cpus():
    assert resolve_jit_compile(None, "float32") is True
    assert resolve_jit_compile(None, "mixed_bfloat16") is False
    for chosen in (True, False):
        assert resolve_jit_compile(chosen, "mixed_bfloat16") is resolve_jit_compile(chosen, "float32") is chosen
