"""The calculator's binary: its table, its flags, mistakes, and the tables of the documentation."""

import re
import shlex

import pytest
from binaries import ROOT, command, run, run_all, succeed


def cells(out):
    """Name of a row -> its cells."""
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in out.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_the_binary_prints_a_table_without_tensorflow():
    flags = ["--model=tiny,gpt2", "--device=h100,a100", "--num_replicas=2"]
    done = succeed(run(command("estimate", *flags, python=["-X", "importtime"])))
    imported = set(re.findall(r"\|\s+(\w+)\s*$", done.raw, re.MULTILINE))
    assert "absl" in imported
    assert not imported & {"tensorflow", "keras", "numpy"}
    table = cells(done.out)
    assert table[""] == ["tiny, 2 h100", "tiny, 2 a100", "gpt2, 2 h100", "gpt2, 2 a100"]
    assert set(table["---"]) == {"---:"}
    # 4 * 12 * 256^2 + 4 * 13 * 256 + 2 * 256 + 256 * (8192 + 33) + 257, and the same with 12, 768 and 50257.
    assert table["trained parameters, millions"] == ["5.27", "5.27", "124", "124"]
    assert table["GB always: optimizer moments"] == ["0.0421", "0.0421", "0.989", "0.989"]
    assert table["GB always: process"] == ["1.00"] * 4
    assert table["largest phase"] == ["gradients", "gradients", "optimizer", "optimizer"]
    assert table["fits"] == ["yes"] * 4
    assert all(cell.endswith("(interconnect)") for cell in table["s in update: all-reduce"])


def test_named_interconnects_are_columns_with_their_all_reduce():
    """124,440,577 weights of gpt2 at 45 positions more or less: 4 bytes each, 2 * 3 / 4 of them, 16 steps."""
    names = ("nvlink4", "pcie4", "ethernet100")
    done = succeed(run(command("estimate", "--num_replicas=4", f"--interconnect={','.join(names)}")))
    table = cells(done.out)
    assert table[""] == [f"gpt2, 4 h100 over {name}" for name in names]
    seconds = [float(cell.split()[0]) for cell in table["s in update: all-reduce"]]
    size = 4 * float(table["trained parameters, millions"][0]) / 1e3  # GB
    for found, speed in zip(seconds, (450, 31.5, 12.5), strict=True):
        assert found == pytest.approx(16 * 2 * 3 / 4 * size / speed, rel=0.01)
    wrong = run(command("estimate", "--interconnect=token_ring"))
    assert wrong.code == 1 and "token_ring" in wrong.err[-1] and "nvlink4" in wrong.err[-1]


def test_every_flag_of_the_binary_changes_the_table():
    base = ["--num_replicas=2", "--accumulation_steps=2", "--rollout_batch_size=64"]
    others = shlex.split(
        "--model=tiny --num_layers=3 --hidden_dim=120 --num_heads=6 --vocabulary_size=500 --rollout_batch_size=128 "
        "--prompt_length=10 --response_length=11 --ppo_epochs=2 --num_minibatches=2 --accumulation_steps=1 "
        "--dtype=float32 --update_dtype=float32 --critic=separate --num_replicas=1 --device=a100 --peak_tflops=1 "
        "--update_peak_tflops=1 --bandwidth_gb_s=10 --memory_gb=2 --interconnect_gb_s=0.1 --interconnect=ethernet25 "
        "--update_efficiency=0.1 --decode_efficiency=0.1 --base_memory_gb=0.1 --allocator=growing"
    )
    done = run_all({flag: command("estimate", *base, flag) for flag in ("--model=gpt2", *others)})
    # The names of model and device stand above the table: what is below must differ too.
    tables = {flag: {**cells(succeed(result).out), "": None} for flag, result in done.items()}
    default = tables.pop("--model=gpt2")
    assert [flag for flag, table in tables.items() if table == default] == []
    one = command("estimate", "--num_replicas=1"), command("estimate", "--num_replicas=1", "--native")
    assert len({succeed(result).out for result in run_all(dict(enumerate(one))).values()}) == 2


MISTAKES = {
    "unknown model": (["--model=gpt5"], r"model is 'gpt5'; choose one of tiny, .*"),
    "no device": (["--device="], r"model, device is \(\['gpt2'\], \[\]\); name at least one of each"),
    "unknown device": (["--device=abacus"], r"device is 'abacus'; choose one of h100, .*"),
    "no number": (["--ppo_epochs=many"], r"flag --ppo_epochs=many: .*"),
    "unknown flag": (["--epochs=3"], r"Unknown command line flag 'epochs'.*"),
    "positional argument": (["gpt2"], r"argument is 'gpt2'; .*--name=value"),
    "bad value": (["--num_minibatches=7"], r"workload\.num_minibatches is 7; it must divide .*"),
    "bad size": (["--num_heads=7"], r"model\.num_heads is 7; it must divide model\.hidden_dim 768"),
}


def test_mistakes_are_told_in_one_line():
    done = run_all({name: command("estimate", *argv) for name, (argv, _) in MISTAKES.items()})
    for name, (_, message) in MISTAKES.items():
        assert done[name].code == 1, name
        assert len(done[name].err) == 1, done[name].raw
        assert re.fullmatch(f"error: {message}", done[name].err[0]), done[name].err[0]
        assert done[name].out == ""


def test_the_tables_of_the_documentation_are_those_of_its_commands():
    text = (ROOT / "docs" / "scaling.md").read_text()
    pairs = re.findall(r"^    tfppo estimate (.*?)\n\n(\|  \|.*?\n)\n", text, re.MULTILINE | re.DOTALL)
    assert len(pairs) == text.count("    tfppo estimate")
    for flags, table in pairs:
        assert succeed(run(command("estimate", *shlex.split(flags.replace("\\\n", ""))))).out == table
