"""What a user does wrong is told in one line, with exit code 1, by the real binaries."""

import re

import pytest
from binaries import ROOT, TINY, command, run, run_all, succeed, write_texts

# Without any work to do: were a mistake not found, the run would end at once in another way.
NOWHERE = "--workdir=/dev/null/nowhere"

CONFIG_FILES = {
    "syntax": "def get_config(:\n",
    "name": "def get_config():\n    return nothing\n",
    "field": "from tfppo.config import Config\n\n\ndef get_config():\n    return Config(sed=1)\n",
    "type": "def get_config():\n    return {'seed': 1}\n",
    "empty": "",
}

MISTAKES = {
    "unknown config file": (
        ["--config=nothing.py"],
        r"--config names no file: 'nothing\.py'; the configs that .*, trl",
    ),
    "misspelt config": (
        ["--config=openai2019"],
        r"--config names no file: 'openai2019'; .*mean --config=openai_2019\?",
    ),
    "config without a value": (["--config="], r"--config names no file: ''; .*"),
    "misspelt field": (
        ["--config.ppo.kl_coeff=1"],
        r".*\.kl_coeff is not a field.*did you mean --config\.ppo\.kl_coef\?",
    ),
    "misspelt section": (["--config.pppo.gamma=1"], r".*\.pppo\.gamma is not a field.*mean --config\.ppo\.gamma\?"),
    "missing section": (["--config.gamma=1"], r".*\.gamma is not a field.*did you mean --config\.ppo\.gamma\?"),
    "field like no other": (["--config.zzzzzz=1"], r"--config\.zzzzzz is not a field.*; --help lists the fields"),
    "part of a field": (["--config.seed.x=1"], r"--config\.seed\.x is not a field.*"),
    "section as a field": (["--config.ppo=5"], r"--config\.ppo is a section; write --config\.ppo\.FIELD=value"),
    "word for a float": (["--config.ppo.kl_coef=abc"], r"--config\.ppo\.kl_coef is 'abc'; it must be a number"),
    "float for an int": (
        ["--config.lm.num_steps=1.5"],
        r"--config\.lm\.num_steps is '1\.5'; .* a whole number",
    ),
    "none for a number": (["--config.ppo.kl_coef=none"], r"--config\.ppo\.kl_coef is 'none'; it must be a number"),
    "word for a bool": (
        ["--config.reward.whiten=maybe"],
        r"--config\.reward\.whiten is 'maybe'; .* True or False",
    ),
    "word for a bool or none": (
        ["--config.ppo.jit_compile=maybe"],
        r"--config\.ppo\.jit_compile is 'maybe'; .* True, False, or none",
    ),
    "field without a value": (["--config.seed"], r"Missing value for flag --config\.seed"),
    "unknown flag": (["--wrkdir=x"], r"Unknown command line flag 'wrkdir'\. Did you mean: workdir \?"),
    "setting without its section": (
        ["--num_steps=5"],
        r"--num_steps is not a flag; did you mean --config\.lm\.num_steps\?",
    ),
    "positional argument": (["stray"], r"argument 'stray' is not a flag; write --name=value"),
    "empty workdir": (["--workdir="], r"--workdir is missing; name the folder of the run"),
    "override before the config": (
        ["--config.seed=1", f"--config={ROOT}/configs/movie_snippets.py"],
        r"Found .*before.*",
    ),
    "none for a field that another one needs": (
        [
            "--config.ppo.critic_learning_rate=0.1",
            "--config.ppo.dual_clip=1.1",
            "--config.ppo.critic_learning_rate=none",
        ],
        r"ppo\.dual_clip is 1\.1; .*",
    ),
    "bad value": (["--config.model.num_heads=3"], r"model\.num_heads is 3; it must divide model\.hidden_dim \d+"),
    "syntax of a config": (["--config={syntax}"], r"config '.*syntax\.py' cannot be loaded: SyntaxError: .*line 1.*"),
    "name in a config": (["--config={name}"], r"config '.*name\.py' cannot be loaded: NameError: name 'nothing'.*"),
    "field in a config": (["--config={field}"], r"config '.*field\.py' cannot be loaded: TypeError: .*'sed'"),
    "type of a config": (
        ["--config={type}"],
        r"'.*type\.py': get_config\(\) must return a tfppo\.config\.Config, not .*",
    ),
    "empty config": (["--config={empty}"], r"config '.*empty\.py' cannot be loaded: .*get_config.*"),
}


@pytest.fixture(scope="module")
def config_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, text in CONFIG_FILES.items():
        (folder / f"{name}.py").write_text(text)
    return {name: folder / f"{name}.py" for name in CONFIG_FILES}


def assert_one_line(finished, pattern):
    assert finished.code == 1, finished.raw
    assert len(finished.err) == 1, finished.raw
    assert re.fullmatch(f"error: {pattern}", finished.err[0]), finished.err[0]
    assert "Traceback" not in finished.raw


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_on_the_command_line(mistake, config_files):
    flags, pattern = MISTAKES[mistake]
    flags = [flag.format(**config_files) for flag in flags]
    finished = run(command("train_lm", NOWHERE, *flags))
    assert_one_line(finished, pattern)
    assert len(finished.raw.splitlines()) == 1  # nor any noise: TensorFlow was not there yet


def test_missing_workdir():
    assert_one_line(run(command("train_ppo")), "--workdir is missing; name the folder of the run")


def test_missing_prompt():
    assert_one_line(run(command("generate", NOWHERE)), "--prompt is missing; write --prompt=TEXT, .*")


def test_the_command_line_is_read_before_tensorflow_is_imported():
    imports = run(command("train_lm", NOWHERE, "--config.model.num_heads=3", python=("-X", "importtime"))).raw
    modules = {line.rpartition("|")[2].strip() for line in imports.splitlines()}
    assert {"tfppo.config", "ml_collections", "absl.flags"} <= modules
    assert not {"tensorflow", "keras", "numpy"} & modules


TOOLS = ["train_lm", "train_reward_model", "train_ppo", "quickstart", "evaluate", "export", "generate"]


@pytest.mark.parametrize("tool", TOOLS)
def test_help_lists_the_flags(tool):
    finished = run(command(tool, "--help", config=["ppo.gamma=0.5", "ppo.target_kl=none"]))
    assert (finished.code, finished.raw) == (0, "")
    flags = {"config", "workdir"}
    flags |= {"model"} if tool in ("evaluate", "export", "generate") else set()
    flags |= {"prompt"} if tool == "generate" else set()
    assert flags == set(re.findall(r"^  --(\w+)(?:=.*)? ", finished.out, re.MULTILINE))
    assert "repeat this option" not in finished.out
    assert f"tools/{tool}.py --" in finished.out  # its example, as it is typed here
    settings = dict(re.findall(r"^  --config\.([\w.]+)=(\S*)", finished.out, re.MULTILINE))
    assert len(settings) > 90
    assert settings["seed"] == "0" and settings["model.vocabulary_size"] == "8192"  # of the config, not of the class
    assert settings["ppo.gamma"] == "0.5" and settings["ppo.target_kl"] == "none"  # as the command line has them
    assert re.search(r"--config\.ppo\.kl_coef=0\.038 +weight of the KL penalty.* \[default 0\.02\]", finished.out)


REWARDS = """
def too_few(prompts, responses):
    return [0.0] * (len(responses) - 1)


def not_a_number(prompts, responses):
    return [0.0, float("nan")] + [0.0] * (len(responses) - 2)


def ends(prompts, responses):
    raise SystemExit("no key")


def exact(prompts, responses, answer):
    return [float(response == right) for response, right in zip(responses, answer)]
"""


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """How commands ended that can fail only once the data or the model is there; a tiny model was trained for them."""
    folder = tmp_path_factory.mktemp("failures")
    settings = (*TINY, write_texts(folder / "texts.txt"), "lm.num_steps=3")
    good = folder / "good"
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "nothing.txt").write_text("\n\n")
    record = '{"prompt": "one two three four five six seven eight nine ten", "response": "x"}\n'
    (folder / "prompts.csv").write_text("prompt,id\n" + "".join(f"question {n},{n}\n" for n in range(40)))
    (folder / "long.jsonl").write_text("".join(record.replace("one", str(n)) for n in range(40)))
    succeed(run(command("train_lm", f"--workdir={good}", config=settings)))

    def ppo(workdir, *more):
        start = f"language_model={good / 'lm'}"
        return command("train_ppo", f"--workdir={folder / workdir}", config=(*settings, start, *more))

    def lm(workdir, *more):
        return command("train_lm", f"--workdir={folder / workdir}", config=(*settings, *more))

    def reward(name):
        return f"reward.functions=('{folder / 'rewards.py'}:{name}',)"

    ends = run_all(
        {
            "workdir": lm("texts.txt/below"),
            "dataset": lm("fresh", f"data.source={folder / 'nothing.txt'}"),
            "architecture": lm("good", "model.hidden_dim=32"),
            "prompt": ppo(
                "ppo_0",
                f"data.source={folder / 'long.jsonl'}",
                "data.max_given_prompt_tokens=8",
                "data.long_prompts=refuse",
            ),
            "no responses": lm("fresh", f"data.source={folder / 'prompts.csv'}"),
            "unknown reward": ppo("ppo_1", reward("none")),
            "number of scores": ppo("ppo_2", reward("too_few")),
            "nan": ppo("ppo_3", reward("not_a_number")),
            # Neither has a model: the column comes first.
            "column": command("train_ppo", f"--workdir={folder / 'fresh'}", config=(*settings, reward("exact"))),
            "column of jsonl": command(
                "evaluate",
                f"--workdir={folder / 'fresh'}",
                config=(*settings, reward("exact"), f"data.source={folder / 'long.jsonl'}"),
            ),
            "reward in evaluation": command(
                "evaluate", f"--workdir={good}", f"--model={good / 'lm'}", config=(*settings, reward("ends"))
            ),
            "no model": command("generate", f"--workdir={folder / 'fresh'}", "--prompt=x", config=settings),
            "long prompt": command("generate", f"--workdir={good}", f"--prompt={'word ' * 90}", config=settings),
        }
    )
    return folder, ends


@pytest.mark.parametrize(
    ("failure", "pattern"),
    [
        ("workdir", r"--workdir '.*texts\.txt/below' cannot be written: Not a directory; choose another"),
        ("dataset", r"source '.*nothing\.txt' has no examples for split 'train': .*"),
        ("architecture", r"language model .*good' was started .*: model\.hidden_dim is 32, not 16; go on .*"),
        ("prompt", r".*long\.jsonl, line \d+: the prompt '\d+ two .*' has \d+ tokens, more than the 8 of data\.max_.*"),
        ("no responses", r"data\.source '.*prompts\.csv' has prompts and no responses; .* train-ppo .*"),
        ("unknown reward", r"reward\.functions has '.*rewards\.py:none', but '.*' has no function 'none'; .*"),
        ("number of scores", r"reward too_few returned 7 scores for 8 responses; .*"),
        (
            "nan",
            r"reward not_a_number is nan for prompt '.+' and response '.*'; it must be finite; .* at .*rewards.py:6",
        ),
        ("column", r"reward exact takes a column 'answer', which data\.source '.*' has not; the columns are: text; .*"),
        ("column of jsonl", r"reward exact takes a column 'answer', .*; the columns are: prompt, response; .*"),
        ("reward in evaluation", r"reward ends raised SystemExit: no key at .*rewards\.py:11, .* prompt '.+' and .*"),
        ("no model", r"there is no model in '.*fresh/lm' .*"),
        ("long prompt", r"the prompt 'word word .* has \d+ tokens; .* the model has room for \d+; shorten .*"),
    ],
)
def test_failure_of_data_or_model(failures, failure, pattern):
    _, ends = failures
    assert_one_line(ends[failure], pattern)


def test_nothing_was_trained_by_a_failure(failures):
    folder, _ = failures
    assert (folder / "good" / "lm" / "model.keras").is_file()
    for path in ("fresh/lm", "fresh/lm_checkpoints"):
        assert not (folder / path).exists(), path
    for name in ("checkpoints", "policy"):
        assert not list(folder.glob(f"*/{name}"))
