"""Promise: an option out of range, or a configuration that is none, is named in one sentence before anything heavy."""

from __future__ import annotations

import pytest
import torch

from faults_helpers import ENCODER, command

_NUMBERS = [
    *((f"--devices={text}", "--devices") for text in ("-1", "0", "99", "0,1", "0,", "x", "1.5", "9" * 30)),
    *((f"--seed={text}", "a whole number") for text in ("-1", "9" * 30, "1.5")),
    *((f"--image-size={text}", "--image-size") for text in ("1000000", "0", "-5", "9" * 30)),
    ("--precision=fp16", "fp16 needs a GPU"),
    *((f"--method.spectrum-patch={text}", "spectrum") for text in ("16", "0", "-1", "1000000")),
    *((f"--method.image-patch={text}", "patch") for text in ("64", "0")),
    ("--encoder=convnext_atto,output_stride=4", "8, 16, 32 are possible"),
    ("--encoder=timm:test_convnext,output_stride=x", "8, 16, 32 are possible"),
    ("--encoder=vit_tiny,patch_size=0", "patch_size=0"),
    ("--guide=frangi:1000000", "guide"),
    ("--guide=target", "--guide-as target"),
    ("--max-steps=99999999999999999", "more than a run can have"),
    ("--epochs=1e300", "more than a run can have"),
    ("--batch-size=10000000", "of memory"),
    (f"--batch-size={10**30}", "at most"),
    ("--start-from=", "The encoder is empty"),
    ("--method=:", "cannot be imported"),
]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is refused here is possible with a GPU")
@pytest.mark.parametrize(("option", "expected"), _NUMBERS)
def test_options_out_of_range(sets, tmp_path, said, option, expected):
    words = [word for word in command("pretrain", sets) if option[:9] == "--epochs=" or "--max-steps" not in word]
    words = [word for word in words if "--max-steps" not in word] if "epochs" in option else command("pretrain", sets)
    assert expected in said(*words, option, f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists() or expected == "of memory"


@pytest.mark.parametrize("verb", ["analyze", "embed"])
def test_numbers_beyond_what_can_be_counted(sets, tmp_path, said, verb):
    words = ["analyze", "frequencies"] if verb == "analyze" else ["embed"]
    words += [str(sets / "scans"), f"--encoder={ENCODER}", f"--out={tmp_path / 'out'}", "--quiet"]
    for name in ("batch-size", "num-workers"):
        assert f"--{name} {10**30}: expected 1,000,000,000 at most" in said(*words, f"--{name}={10**30}")
    assert not (tmp_path / "out").exists()


_HEADS = [
    *((f"--seed={text}", "a whole number") for text in ("-1", "9" * 30)),
    *((f"--image-size={text}", "--image-size") for text in ("1000000", "0")),
    ("--precision=fp16", "--precision fp16"),
    ("--batch-size=1000000000", "of memory"),
    (f"--batch-size={10**30}", "at most"),
    ("--epochs=1e300", "more than a run can have"),
    ("--encoder=random:convnext_atto,output_stride=4", "8, 16, 32 are possible"),
    ("--encoder=random:vit_tiny,seed=x", "seed=x"),
    ("--encoder=", "The encoder is empty"),
    ("--encoder=timm:test_vit@/etc/passwd", "cannot be read"),
    ("--encoder=timm:test_vit@x,y=3", "y"),
    ("--encoder=/dev/null", "was not found"),
]


@pytest.mark.parametrize("verb", ["segment", "classify", "detect"])
@pytest.mark.parametrize(("option", "expected"), _HEADS)
def test_options_of_heads_out_of_range(sets, tmp_path, said, verb, option, expected):
    words = [word for word in command(verb, sets) if "epochs" not in option or "--max-steps" not in word]
    assert expected in said(*words, option, f"--out={tmp_path / 'out'}")


@pytest.mark.parametrize("text", ["SECRET: [", "SECRET", "- SECRET", "%SECRET", "!!python/object:SECRET", "1: SECRET",
                                  "SE CRET: 1", "root:*:SECRET: 1", "max_steps: SECRET", "seed: {SECRET: 1}",
                                  "resume: SECRET", "method: {name: [SECRET]}", "a: &x {SECRET: *x}"])  # fmt: skip
def test_nothing_of_a_wrong_config_is_shown(sets, tmp_path, said, text):
    (tmp_path / "c.yaml").write_text(text)
    words = [word for word in command("pretrain", sets) if "max-steps" not in word]
    for options in (
        [f"--config={tmp_path / 'c.yaml'}", *words[1:]],
        [*words[1:], "--config", str(tmp_path / "c.yaml")],
    ):
        assert "SECRET" not in said("pretrain", *options, f"--out={tmp_path / 'out'}").replace(str(sets), "")


@pytest.mark.parametrize("name", ["/etc/passwd", "/dev/null", "/", "no.yaml", "", "x" * 5000, "a\0b"])
def test_configs_that_are_none(sets, tmp_path, said, name):
    found = said("pretrain", f"--config={name}", str(sets / "scans"), f"--out={tmp_path / 'out'}")
    assert "--config" in found
    assert "root:" not in found


def test_what_is_typed_wins_over_a_file_wherever_it_stands(sets, tmp_path):
    other = sets / "classes"
    file = tmp_path / "c.yaml"
    # A wrong seed ends the run before anything heavy is done, and says which value was taken.
    file.write_text(
        f"source: {sets / 'scans'}\nout: {tmp_path / 'filed'}\nseed: 5\nmethod: {{name: mae, mask_ratio: 0.5}}\n"
    )
    from frepa import cli
    from frepa.verbs.pretrain import pretrain

    typed = [str(other), f"--out={tmp_path / 'typed'}", "--seed=7", "--method.mask-ratio=0.25"]
    for words in (
        ["--config", str(file), *typed],
        [*typed, "--config", str(file)],
        [*typed[:2], f"--config={file}", *typed[2:]],
    ):
        given = cli.read_words("pretrain", pretrain, words)
        assert given is not None
        assert given["source"] == str(other)
        assert given["out"] == str(tmp_path / "typed")
        assert given["seed"] == 7
        assert given["method"] == {"name": "mae", "mask_ratio": 0.25}
    alone = cli.read_words("pretrain", pretrain, ["--config", str(file)])
    assert alone is not None
    assert (alone["source"], alone["seed"]) == (str(sets / "scans"), 5)


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_more_processes_than_a_machine_can_have(sets, tmp_path, said, verb):
    words = [word for word in command(verb, sets) if "workers" not in word]
    assert "10,000 at most" in said(*words, f"--num-workers={2**31}", f"--out={tmp_path / 'out'}")
