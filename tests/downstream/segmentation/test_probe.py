from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import tiny_encoders  # noqa: F401 (registers them)
from frepa.downstream.crops import cover
from frepa.downstream.fitting import affordable
from frepa.downstream.segmentation.baselines import constant_answer
from frepa.downstream.segmentation.metrics import case_mean, count, dice
from frepa.downstream.segmentation.model import load_segmenter
from frepa.downstream.segmentation.probe import best_offsets
from frepa.errors import InputError
from frepa.heads.segmenter import DIRECT_SHARE
from frepa.optimizers import MUON_SHARE, MuonAndAdam
from frepa.verbs.segment import segment

ENCODER = "random:tiny_for_tests"


def make_set(root: Path, masks: list[np.ndarray]) -> Path:
    draw = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, mask in enumerate(masks):
        image = 60 + 50 * mask + draw.normal(0, 20, mask.shape)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{number}.png")
    return root


def blobs(classes: int, count_: int = 8, size: int = 32) -> list[np.ndarray]:
    draw, masks = np.random.default_rng(1), []
    for _ in range(count_):
        mask = np.zeros((size, size), np.uint8)
        for k in range(1, classes):
            y, x = draw.integers(0, size - 8, 2)
            mask[y : y + 8, x : x + 8] = k
        masks.append(mask)
    return masks


@pytest.fixture(scope="module", params=[2, 3])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("probe")
    source = make_set(root / "set", blobs(request.param))
    out = segment(
        [str(source)], encoder=ENCODER, out=str(root / "run"), head="linear", features="last", augment=False,
        crop_size=32, quiet=True, num_workers=0,
    )  # fmt: skip
    return source, out


def test_the_probe_is_scikit_learns(run: tuple[Path, Path]) -> None:
    source, out = run
    segmenter = load_segmenter(out)
    results = json.loads((out / "results.json").read_text())
    probe, classes = results["training"][0]["probe"], results["classes"]
    cases = next(iter(results["sets"].values()))["cases"]
    assert cases["train"] * 16 * 16 == probe["positions"]
    # The split is the run's own: what is neither test nor validation.
    from frepa.downstream.segmentation.data import open_sets

    (item,) = open_sets([str(source)], dims=2)
    x, y = [], []
    for case in item.part("train"):
        image = torch.from_numpy(np.asarray(Image.open(case.image), np.float32))[None]
        low, high = np.percentile(image, [0.5, 99.5])
        image = ((image - low) / (high - low)).clamp(0, 1)
        with torch.no_grad():
            inputs = segmenter.encoder.prepare_input(image[None], segmenter.guide(image)[None])
            x.append(segmenter.encoder(inputs).dense[0].flatten(1).T.numpy())
        mask = np.asarray(Image.open(case.mask))
        hot = np.stack([mask == k for k in range(1, classes)]).astype(float)
        y.append(hot.reshape(classes - 1, 16, 2, 16, 2).transpose(1, 3, 0, 2, 4).reshape(256, -1))
    x, y = np.concatenate(x).astype(float), np.concatenate(y)
    scaler = StandardScaler().fit(x)
    # Dead channels of the encoder have no variance, and no weight.
    oracle = Ridge(alpha=probe["penalty"] * len(x)).fit(scaler.transform(x), y)
    expected = oracle.predict(scaler.transform(x[:256])).reshape(16, 16, classes - 1, 2, 2)
    expected = expected.transpose(2, 0, 3, 1, 4).reshape(classes - 1, 32, 32)
    every = np.concatenate([1 - expected.sum(0, keepdims=True), expected]) + np.reshape(probe["offsets"], (-1, 1, 1))
    with torch.no_grad():
        maps = [torch.from_numpy(x[:256].T.reshape(1, -1, 16, 16)).float()]
        logits = segmenter.head(maps, (32, 32))[0].double().numpy()
    differences = [(logits[a] - logits[b], every[a] - every[b]) for a, b in itertools.combinations(range(classes), 2)]
    scale = differences[0][0].std() / differences[0][1].std()
    for own, other in differences:
        np.testing.assert_allclose(own, scale * other, rtol=1e-2, atol=2e-3 * scale)


def test_nothing_is_drawn_at_random(run: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = run
    again = segment(
        [str(source)], encoder=ENCODER, out=str(tmp_path / "again"), head="linear", features="last", augment=False,
        crop_size=32, quiet=True, num_workers=2, lr=0.5, batch_size=3,
    )  # fmt: skip
    one, other = load_file(out / "head.safetensors"), load_file(again / "head.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_results_say_what_was_read_and_what_needs_no_encoder(run: tuple[Path, Path]) -> None:
    _, out = run
    results = json.loads((out / "results.json").read_text())
    assert (results["head"], results["features"]) == ("linear", "last")
    (item,) = results["sets"].values()
    names = {"all_foreground", "atlas"} | ({"guide"} if results["classes"] == 2 else set())
    assert set(item["baselines"]) == names
    page = (out / "report.html").read_text()
    assert "every pixel foreground" in page
    assert "linear, on features: last" in page
    assert json.loads((out / "head.json").read_text())["features"] == "last"


def test_conv_starts_where_the_probe_ends(run: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = run
    conv = segment(
        [str(source)], encoder=ENCODER, out=str(tmp_path / "conv"), features="last", augment=False, crop_size=32,
        max_steps=2, lr=1e-9, quiet=True, num_workers=0,
    )  # fmt: skip
    (training,) = json.loads((conv / "results.json").read_text())["training"]
    assert training["best_step"] == 0
    one, other = load_segmenter(out), load_segmenter(conv)
    image = np.random.default_rng(0).random((1, 40, 36)).astype(np.float32)
    np.testing.assert_allclose(one.predict(image).probabilities, other.predict(image).probabilities, atol=1e-5)


def test_a_training_part_without_foreground_is_refused_in_plain_words(tmp_path: Path) -> None:
    masks = [np.zeros((32, 32), np.uint8) for _ in range(8)]
    source = make_set(tmp_path / "set", masks)
    from frepa.downstream.segmentation.data import open_sets

    (item,) = open_sets([str(source)], dims=2)
    marked = np.zeros((32, 32), np.uint8)
    marked[:9, :9] = 1
    Image.fromarray(marked).save(item.part("test")[0].mask)
    for head in ("linear", "conv"):
        with pytest.raises(InputError, match="No training image has a labelled pixel"):
            segment([str(source)], encoder=ENCODER, out=str(tmp_path / head), head=head, quiet=True, max_steps=2)


def test_an_old_head_is_refused_with_what_to_do(run: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = run
    path = out / "head.safetensors"
    with safe_open(path, framework="pt") as file:
        text = json.loads(file.metadata()["frepa"])
    save_file(load_file(path), tmp_path / "head.safetensors", {"frepa": json.dumps(text | {"format": 1})})
    with pytest.raises(InputError, match=r"older frepa.*Train it again"):
        load_segmenter(tmp_path)
    # A linear head from before the convolutions were others is read; one with those convolutions is not.
    head = {name: value for name, value in text["head"].items() if name != "planes"}
    save_file(load_file(path), tmp_path / "head.safetensors", {"frepa": json.dumps(text | {"head": head})})
    load_segmenter(tmp_path)
    head["kind"] = "conv"
    save_file(load_file(path), tmp_path / "head.safetensors", {"frepa": json.dumps(text | {"head": head})})
    with pytest.raises(InputError, match=r"older frepa.*Train it again"):
        load_segmenter(tmp_path)
    for found in (-1, 0, True, None, "2"):
        save_file(load_file(path), tmp_path / "head.safetensors", {"frepa": json.dumps(text | {"format": found})})
        with pytest.raises(InputError, match="describes no head"):
            load_segmenter(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "lineal"}, "Did you mean linear"),
        ({"features": "pyramide"}, "Did you mean pyramid"),
        ({"reach": 2}, "expected 1 or 3"),
    ],
)
def test_wrong_requests(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        segment([str(tmp_path)], encoder=ENCODER, out=str(tmp_path / "o"), **options)


@pytest.mark.parametrize("classes", [2, 3])
def test_offsets_are_the_best_of_all_thresholds_tried(classes: int) -> None:
    draw = np.random.default_rng(3)
    truths = [draw.integers(0, classes, (12, 10)) * (draw.random((12, 10)) < 0.5) for _ in range(3)]
    answers = [
        np.stack([(t == k) * 0.3 + draw.normal(0.1, 0.15, t.shape) for k in range(1, classes)]).astype(np.float32)
        for t in truths
    ]

    def score(offsets: np.ndarray) -> float:
        each = []
        for answer, truth in zip(answers, truths):
            every = np.concatenate([1 - answer.sum(0, keepdims=True), answer]) + offsets.reshape(-1, 1, 1)
            counts = count(truth, every.argmax(0), classes)
            each.append(case_mean(dice(counts), counts))
        return float(np.mean(each))

    offsets, best = best_offsets(answers, truths)
    assert offsets[0] == 0
    assert score(offsets) == pytest.approx(best, abs=0.02)  # ties at a threshold itself may fall either way
    thresholds = np.arange(0.02, 0.96, 0.02)
    for kind in range(1, classes):
        tried = []
        for threshold in thresholds:
            moved = offsets.copy()
            moved[kind] = 1 - 2 * threshold
            tried.append(score(moved))
        assert best >= max(tried) - 0.02


def test_constant_outputs_are_named() -> None:
    assert "nothing was marked" in str(constant_answer([0, 0]))
    assert "every pixel was marked" in str(constant_answer([2, 2]))
    assert constant_answer([1, None]) is None
    assert constant_answer([0, 1]) is None


@pytest.mark.parametrize("size", [(20, 33), (16, 16), (7, 40), (9, 20, 21)])
def test_every_view_covers_the_image(size: tuple[int, ...]) -> None:
    crop = (16,) * len(size)
    planes = torch.arange(1, 1 + int(np.prod(size))).view(1, *size).float()
    for view in range(8):
        seen = torch.cat([window.flatten() for window in cover(planes, crop, view)]).unique()
        assert set(planes.flatten().tolist()) <= set(seen.tolist())


def test_validation_costs_a_tenth_of_training_at_most() -> None:
    for steps, batch, windows in [(100, 8, [9] * 3), (1000, 8, [25] * 40), (30, 2, [9] * 4), (5000, 8, [4] * 2)]:
        every, cases = affordable(steps, batch, windows)
        times = -(-steps // every)
        looked = sum(windows[case] for case in cases)
        assert times * looked <= max(0.1 * 2 * steps * batch, looked)  # one look at one case always
        assert 1 <= times <= 20
    assert len(affordable(1000, 8, [25] * 40)[1]) < 40


def test_a_part_solved_on_several_maps_is_soft_and_hardly_moves(tmp_path: Path) -> None:
    source = make_set(tmp_path / "set", blobs(2))
    options = {"encoder": ENCODER, "features": "pyramid+image", "crop_size": 32, "quiet": True, "num_workers": 0}
    segmenter = load_segmenter(segment([str(source)], out=str(tmp_path / "run"), max_steps=1, lr=1e-9, **options))
    linear = load_segmenter(segment([str(source)], out=str(tmp_path / "linear"), head="linear", **options))
    image = np.random.default_rng(0).random((1, 40, 36)).astype(np.float32)
    found, soft = linear.predict(image), segmenter.predict(image)
    np.testing.assert_array_equal(found.classes, soft.classes)
    # The same answers, but softer: their log odds are in one proportion.
    odds, own = (np.log(each.probabilities[1] / each.probabilities[0]) for each in (found, soft))
    share = float((own * odds).sum() / (odds**2).sum())
    assert 0 < share < 0.9
    np.testing.assert_allclose(own, share * odds, rtol=1e-2, atol=2e-3)

    groups = segmenter.rate_groups()
    assert [group.get("share", 1.0) for group in groups] == [1.0, MUON_SHARE, DIRECT_SHARE]
    names = {id(weight): name for name, weight in segmenter.head.named_parameters()}
    muon = {names[id(weight)] for weight in groups[1]["params"]}
    assert {"body.rising.up.0.weight", "body.lifted.network.network.final_conv.weight"} < muon
    assert not any(name.startswith(("direct", "body.lifted.lift")) or name.endswith("bias") for name in muon)
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in segmenter.head.direct.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(segmenter.trained_parameters())
    optimizer, before = MuonAndAdam(groups, lr=0.5), segmenter.head.direct.bias.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * group.get("share", 1.0)
    segmenter(torch.rand(1, 4, 32, 32)).square().mean().backward()
    optimizer.step()
    # The first step of Adam is as long as the rate.
    moved = float((segmenter.head.direct.bias - before).detach().abs().max())
    assert moved == pytest.approx(0.5 * DIRECT_SHARE, rel=1e-3)


@pytest.mark.parametrize("sides", [(4,), (4, 20)], ids=["left", "both"])
def test_flips_are_left_out_where_things_lie_the_same_way_everywhere(sides: tuple[int, ...], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for number in range(10):
        mask, image = np.zeros((32, 32), np.uint8), draw.normal(60, 10, (32, 32))
        rows = slice(at := int(draw.integers(4, 20)), at + 8)
        for left in (4, 20):  # the same on either side, where it is foreground in one set, and background in the other
            image[rows, left : left + 8] += 100
            mask[rows, left : left + 8] = left in sides
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(tmp_path / "set" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "set" / "masks" / f"{number}.png")

    def trained(augment: bool) -> tuple[float, int, bool]:
        out = segment(
            [str(tmp_path / "set")], encoder="random:vit_tiny,patch_size=8,depth=1,image_size=32", head="linear",
            features="last", augment=augment, crop_size=32, quiet=True, num_workers=0, out=str(tmp_path / f"{augment}"),
        )  # fmt: skip
        results = json.loads((out / "results.json").read_text())
        (training,), said = results["training"], any("without flips and turns" in each for each in results["warnings"])
        return training["best_val_dsc"], training["probe"]["positions"], said

    turned, plain = trained(True), trained(False)
    assert plain[2] is False
    if len(sides) == 1:
        assert turned[1:] == (plain[1], True)
        assert turned[0] == pytest.approx(plain[0], abs=0.05)
    else:
        assert turned[1:] == (8 * plain[1], False)
        assert turned[0] > plain[0] - 0.01
