"""What the devices can do."""

import pytest

from tfppo.distribute import has_fast_bfloat16


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


def test_no_cpuinfo_is_no_bfloat16(tmp_path):
    assert has_fast_bfloat16(tmp_path / "missing") is False
