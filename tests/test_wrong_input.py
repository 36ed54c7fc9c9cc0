"""Wrong input of every command is refused in one line, before anything heavy is imported."""

from pathlib import Path

import pytest
from PIL import Image

from data_prep.__main__ import COMMANDS as DATA_PREP
from data_prep.common.cli import run_command, run_program
from helpers.programs import PROGRAMS, ROOT, SCRIPTS, start

SHARD = ("shard", "--layout=folder", "--input=.", "--output={tmp}/set")
SEG = ("shard-seg", "--layout=pairs", "--input=.", "--output={tmp}/set")
STAGE_ONE = ("--config=configs/pretrain/quickstart.yaml", "--data.shards=x", "--output={tmp}/run")
STAGE_TWO = ("--config=configs/finetune/quickstart.yaml", "--data.shards=x", "--output={tmp}/run")
EPOCHS = (*STAGE_ONE, "--optim.steps=null")
ESTIMATE = ("estimate", "--config=configs/pretrain/quickstart.yaml")
EVALUATE = ("evaluate", "--run=x", "--data.shards=y", "--output={tmp}/results")
PREDICT = ("predict", "--run=x", "--input=y.png", "--output={tmp}/mask.png")

WRONG = [
    # commands
    ("data_prep", ("shrd",), "'shrd' is not a command; did you mean shard?"),
    ("data_prep", (), "no command is given; there are shard, shard-seg, layouts"),
    ("pretrain", ("bench",), "'bench' is not a command; did you mean benchmark?"),
    ("finetune", ("evalute",), "did you mean evaluate?"),
    ("finetune", ("--run=x",), "'--run=x' is not a command"),
    # options
    ("data_prep", (*SHARD, "--max-sise=3"), "--max_sise: there is no such option; did you mean"),
    ("data_prep", (*SHARD, "--layuot=x"), "--layuot: there is no such option; did you mean --lay"),
    ("data_prep", (*SHARD, "--raters=each"), "--raters: is an option of riga, not of layout f"),
    ("data_prep", (*SEG, "--raters=each"), "--raters: is an option of riga, not of layout pairs"),
    ("data_prep", (*SEG, "--planes=[axial]"), "--planes: is an option of dicom, nifti, sampl"),
    ("data_prep", ("info", "--shard=x"), "--shard: there is no such option; did you mean --shards"),
    ("data_prep", ("verify",), "--shards is missing; see --help"),
    ("data_prep", ("shard",), "--output and --layout are missing; see --help"),
    ("data_prep", SHARD[:2], "--output and --input are missing"),
    ("data_prep", SEG, "--image and --mask are missing"),
    ("data_prep", (*SHARD, "stray"), "'stray' is not an option; options begin with --"),
    ("data_prep", (*SHARD, "-v"), "'-v' is not an option"),
    ("data_prep", (*SHARD, "--seed"), "--seed: a value is missing"),
    ("data_prep", (*SHARD, "--extnd"), "--extnd: there is no such option; did you mean --extend?"),
    ("data_prep", ("shard", "--layout"), "--layout: a value is missing"),
    ("data_prep", (*SHARD, "--config"), "--config: a value is missing"),
    ("data_prep", (*SHARD, "--seed", "--workers=2"), "--seed: a value is missing"),
    (
        "pretrain",
        ("benchmark", "--size=[224]"),
        "did you mean --sizes?",
    ),
    ("finetune", (*EVALUATE, "--protocol=[Box]"), "did you mean --protocols?"),
    ("finetune", (*PREDICT, "--click=1,1,1"), "did you mean --clicks?"),
    ("finetune", ("compare", "--result=[a]"), "did you mean --results?"),
    ("finetune", ("quickstart", "--inptu=x"), "did you mean --input?"),
    ("finetune", ("benchmark", "--part=clicks"), "did you mean --parts?"),
    ("pretrain/train.py", (*STAGE_ONE, "--optim.lrr=1"), "did you mean --optim.lr?"),
    ("pretrain/train.py", (*STAGE_ONE, "--lr=1"), "--lr: there is no such option; did you mean"),
    ("pretrain/train.py", (*STAGE_ONE, "--optim.steps.more=1"), "--optim.steps.more: there is no"),
    ("finetune/train.py", (*STAGE_TWO, "--augmentation.flip=1"), "--data.augmentation.flip?"),
    ("finetune/train.py", (*STAGE_TWO, "--model.encoder_adaptor=x"), "--model.encoder_adapter?"),
    # values
    ("data_prep", (*SHARD, "--bits=9"), "--bits: 9 is not one of 8, 16"),
    ("data_prep", (*SHARD, "--seed=abc"), "--seed: 'abc' is not a whole number"),
    ("data_prep", (*SHARD, "--seed=1.5"), "--seed: 1.5 is not a whole number"),
    ("data_prep", (*SHARD, "--max_bad=few"), "--max_bad: 'few' is not a number"),
    ("data_prep", (*SHARD, "--class_folders=maybe"), "'maybe' is not true or false"),
    ("data_prep", (*SHARD, "--window=wide"), "--window: 'wide' is not one of auto, percentile, f"),
    ("data_prep", (*SHARD, "--window=[5, 1]"), "window: [5.0, 1.0] is not a rising pair"),
    ("data_prep", (*SHARD, "--workers=0"), "workers must be at least 1"),
    ("data_prep", ("shard", "--layout=foldr"), "no layout 'foldr'; did you mean folder?"),
    ("data_prep", ("shard", "--layout=busi"), "layout: busi is for `shard-seg`, not for pretr"),
    ("data_prep", ("layouts", "pears"), "there is no layout 'pears'; did you mean pairs?"),
    (
        "data_prep",
        ("shard", "--layout=nifti", "--input=.", "--output={tmp}/set", "--planes=axial,coronl"),
        "--planes: 'axial,coronl' is not a list of any of axial, coronal, sagittal",
    ),
    ("data_prep", (*SEG, "--image=a*", "--mask=b*", "--split=0.8"), "is not a mapping from names"),
    ("data_prep", (*SEG, "--image=a*", "--mask=b*", "--split={train: x}"), "names to numbers"),
    ("data_prep", (*SEG, "--labels={a: [1}"), "--labels: is not YAML"),
    (
        "pretrain",
        ("benchmark", "--encoder_size=vit_q"),
        "no size 'vit_q'; did you mean vit_",
    ),
    ("pretrain/train.py", (*STAGE_ONE, "--optim.lr=fast"), "--optim.lr: 'fast' is not a number"),
    ("pretrain/train.py", (*STAGE_ONE, "--precision=fp16"), "'fp16' is not one of no, bf16"),
    ("pretrain/train.py", (*STAGE_ONE, "--optim.betas=0.9"), "0.9 is not a list of 2 numbers"),
    ("pretrain/train.py", (*STAGE_ONE, "--image_size=230"), "230 is not a positive multiple"),
    ("pretrain/train.py", (*STAGE_ONE, "--data.weights=a"), "'a' is not a list of numbers"),
    ("pretrain/train.py", (*STAGE_ONE, "--optim=fast"), "'fast' is neither a YAML file nor a map"),
    ("pretrain/train.py", (*STAGE_ONE, "--threads=0"), "--threads: 0 is not 1 or more"),
    ("finetune/train.py", (*STAGE_TWO, "--data.cases=0"), "data.cases is 0; it must be at least"),
    ("finetune/train.py", (*STAGE_TWO, "--data.cases=few"), "'few' is not a whole number or null"),
    ("finetune", (*EVALUATE, "--tolerance=-1"), "tolerance is -1.0; it must not be negative"),
    ("finetune", (*EVALUATE, "--protocols=[]"), "protocols: the list is empty"),
    ("data_prep", (*SHARD, "--seed=null"), "--seed: null is not a whole number"),
    ("data_prep", (*SHARD, "--workers=null"), "--workers: null is not a whole number"),
    ("data_prep", (*SHARD, "--max_bad=7"), "max_bad: 7.0 is not a fraction between 0 and 1"),
    ("data_prep", (*SHARD, "--max_size=0"), "max_size: 0 is not at least 1, or null"),
    ("pretrain", ("benchmark", "--sizes=100"), "sizes: 100 is not a positive multiple of 16"),
    ("pretrain/train.py", (*STAGE_ONE, "--optim.lr=null"), "--optim.lr: null is not a number"),
    ("pretrain/train.py", (*STAGE_ONE, "--optim.lr=-1"), "optim.lr is -1.0; it must be positive"),
    ("pretrain/train.py", (*STAGE_ONE, "--optim.betas=5,5"), "optim.betas are [5.0, 5.0]; they m"),
    ("pretrain/train.py", (*STAGE_ONE, "--optim.clip=-1"), "optim.clip is -1.0; it must be posit"),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--optim.epochs=3"),
        "optim.steps 75 and optim.epochs 3.0 are",
    ),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--optim.warmup_epochs=1"),
        "both given; set one of them to",
    ),
    (
        "pretrain/train.py",
        (*EPOCHS, "--optim.epochs=0"),
        "optim.epochs is 0.0; it must be positive",
    ),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--optim.accumulate=many"),
        "'many' is not a whole number or",
    ),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--optim.accumulate=0"),
        "optim.accumulate is 0; it must be",
    ),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--trackers=wandbb"),
        "'wandbb' is not a list of any of tens",
    ),
    ("pretrain/train.py", (*STAGE_ONE, "--trackers=[aim]"), "trackers: aim needs the package aim,"),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--check_every=0"),
        "check_every is 0; it must be 1 or more",
    ),
    ("pretrain", (*ESTIMATE,), "how many images are there? name --data.shards, or give --images"),
    (
        "pretrain",
        (*ESTIMATE, "--gpu=H10"),
        "gpu: the peak of 'H10' is not known; did you mean H100",
    ),
    (
        "pretrain",
        (*ESTIMATE, "--mfu=40"),
        "gpus must be 1 or more, mfu in (0, 1], and memory above",
    ),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--resume=yes"),
        "--resume: 'yes' is not one of never",
    ),
    ("finetune/train.py", (*STAGE_TWO, "--prompts=null"), "--prompts: null is not a class"),
    ("finetune", (*EVALUATE, "--threads=0"), "--threads: 0 is not 1 or more"),
    ("finetune", (*PREDICT, "--window=[5, 3]"), "window: [5.0, 3.0] is not a rising pair"),
    # classes and their options
    ("finetune", (*EVALUATE, "--protocols=[3]"), "3 is neither a class nor a mapping with class"),
    ("finetune", (*EVALUATE, "--protocols=[{class: Box}]"), "names no class (class_path); it has"),
    ("finetune", (*EVALUATE, "--protocols=[{class_path: Clicks, numbers: x}]"), "is not a list of"),
    ("finetune/train.py", (*STAGE_TWO, "--prompts.rounds.x=3"), "no such option; rounds holds 0"),
    ("finetune/train.py", (*STAGE_TWO, "--prompts.clicks=3"), "prompts.clicks: 3 is not a mapping"),
    (
        "finetune/train.py",
        (*STAGE_TWO, "--model.decoder={init_args: 5}"),
        "init_args 5 is not a",
    ),
    (
        "finetune/train.py",
        (*STAGE_TWO, "--model.encoder_adapter=MsaAdaptor"),
        "there is no class 'MsaAdaptor'; did you mean MsaAdapter?",
    ),
    (
        "finetune/train.py",
        (*STAGE_TWO, "--model.encoder_adapter=finetune.adapters.MsaAdaptor"),
        "there is no class 'MsaAdaptor' in finetune.adapters; did you mean MsaAdapter?",
    ),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--objectives.emx.weight=0"),
        "there is no 'emx' in objectives; did you mean emix?",
    ),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--optm.lr=1"),
        "no such option; did you mean --optim.lr?",
    ),
    ("pretrain/train.py", (*STAGE_ONE, "--objectives.emix.alfa=1"), "did you mean alpha?"),
    ("pretrain/train.py", (*STAGE_ONE, "--objectives.emix.alpha=x"), "'x' is not a number"),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--objectives.more=EMx"),
        "no class 'EMx'; did you mean EMix",
    ),
    ("pretrain/train.py", (*STAGE_ONE, "--objectives=mae"), "a mapping from names to classes"),
    ("finetune/train.py", (*STAGE_TWO, "--prompts.round=3"), "did you mean rounds?"),
    ("finetune/train.py", (*STAGE_TWO, "--prompts.clicks.max_postive=3"), "max_positive?"),
    ("finetune/train.py", (*STAGE_TWO, "--prompts=Cliks"), "there is no class 'Cliks'"),
    ("finetune/train.py", (*STAGE_TWO, "--loss.dcie=1"), "did you mean dice?"),
    ("finetune/train.py", (*STAGE_TWO, "--model.decoder_adapter.ratio=x"), "'x' is not a number"),
    ("finetune", (*EVALUATE, "--protocols=[Bx]"), "there is no class 'Bx'; did you mean Box?"),
    ("finetune", (*EVALUATE, "--protocols.numbers=3"), "protocols is a list; give it whole, as"),
    # files
    ("data_prep", (*SHARD, "--config={tmp}/none.yaml"), "none.yaml cannot be read (No such file"),
    ("data_prep", (*SHARD, "--config={tmp}/text.yaml"), "text.yaml: is not a YAML mapping"),
    ("data_prep", (*SHARD, "--config={tmp}/broken.yaml"), "broken.yaml, line 3: is not YAML"),
    ("data_prep", (*SHARD, "--config={tmp}/binary.yaml"), "cannot be read (it is not a text file)"),
    ("data_prep", (*SHARD, "--config={tmp}/key.yaml"), "key.yaml: shard_record: there is no such"),
    ("data_prep", (*SHARD, "--config={tmp}/value.yaml"), "value.yaml: bits: 9 is not one of 8, 16"),
    ("pretrain/train.py", (*STAGE_ONE, "--config={tmp}/nested.yaml"), "optim.lrate: there is no s"),
    ("pretrain/train.py", (*STAGE_ONE, "--config={tmp}/flat.yaml"), "flat.yaml: optim: 3 is not a"),
    (
        "pretrain/train.py",
        (*STAGE_ONE, "--config={tmp}/class.yaml"),
        "class.yaml: objectives.emix.alfa: there is no such option; did you mean alpha?",
    ),
    ("data_prep", ("info", "--shards={tmp}"), "no shard set (dataset.json is missing)"),
    ("data_prep", ("verify", "--shards={tmp}"), "dataset.json: missing"),
    ("data_prep", (*SHARD[:2], "--input={tmp}/no", SHARD[3]), "no is not a folder"),
]

FILES = {
    "text.yaml": "just text\n",
    "broken.yaml": "layout: folder\nbits: [9\n",
    "key.yaml": "shard_record: 3\n",
    "value.yaml": "bits: 9\n",
    "nested.yaml": "optim: {lrate: 1}\n",
    "flat.yaml": "optim: 3\n",
    "class.yaml": "objectives: {emix: {class_path: EMix, init_args: {alfa: 1}}}\n",
}


@pytest.mark.parametrize(("program", "arguments", "message"), WRONG)
def test_wrong_input_is_one_line(
    program: str,
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    before = sorted(tmp_path.rglob("*"))
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        if program in SCRIPTS:
            run_command(program, SCRIPTS[program], given)
        else:
            run_program(f"python -m {program}", PROGRAMS[program], given)
    assert stopped.value.code == 2
    captured = capfd.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and message in line
    assert captured.out == "" and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", ["file", "file/set"])
def test_an_output_that_cannot_be_made_is_one_line(
    output: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "images").mkdir()
    Image.new("L", (40, 40)).save(tmp_path / "images" / "a.png")
    options = ["--layout=folder", f"--input={tmp_path / 'images'}", f"--output={tmp_path / output}"]
    with pytest.raises(SystemExit) as stopped:
        run_program("python -m data_prep", DATA_PREP, ["shard", *options])
    assert stopped.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / output}: ")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [(p, a) for p, a, m in WRONG if any(w in m for w in ("option", "did you", "missing; see"))],
)
def test_options_are_refused_without_heavy_imports(program: str, arguments: tuple) -> None:
    given = [argument.replace("{tmp}", "/nonexistent") for argument in arguments]
    status, _, errors, imported = start(program, *given)
    assert (status, imported) == (2, set())
    assert errors.count("\n") == 1


def test_under_a_launcher_the_line_is_ours_alone(launch, tmp_path: Path) -> None:
    done = launch("pretrain/train.py", f"--output={tmp_path / 'run'}", "--optim.lrr=1")
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    assert lines[0] == "error: --optim.lrr: there is no such option; did you mean --optim.lr?"
    assert not [line for line in lines[1:] if line.startswith("error")]
