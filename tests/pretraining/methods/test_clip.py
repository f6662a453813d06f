"""Image-label contrast against direct computations, and what it asks of a source."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frepa.encoders.registry import build_encoder
from frepa.errors import InputError
from frepa.pretraining.methods.clip import CLIP, CLIPMethod, WordTower, contrast
from frepa.pretraining.methods.contract import Batch, Setting


def _method(classes=("benign", "malignant"), **options) -> CLIPMethod:
    torch.manual_seed(0)
    encoder = build_encoder("timm:test_convnext", dims=2, guide="none", image_size=32)
    setting = Setting(encoder=encoder, channels=1, image_size=32, fit="crop", seed=0, classes=classes)
    return CLIPMethod(CLIP(augment=False, **options), setting)


def _batch(labels) -> Batch:
    torch.manual_seed(1)
    count = len(labels)
    images = torch.rand(count, 1, 32, 32)
    return Batch(images, torch.ones(count, dtype=torch.bool), list(range(count)), labels=torch.tensor(labels))


def test_several_positives_share_the_probability():
    rng = np.random.default_rng(0)
    similarity, classes = rng.normal(size=(5, 5)), np.array([0, 1, 0, 2, 0])
    total = 0.0
    for logits in (similarity, similarity.T):
        for i in range(5):
            log = logits[i] - np.log(np.exp(logits[i]).sum())
            total -= log[classes == classes[i]].mean() / 10
    found = contrast(torch.from_numpy(similarity), torch.from_numpy(classes))
    assert found.item() == pytest.approx(total, rel=1e-10)
    # One text for each image: what CLIP publishes, the cross entropy of both directions.
    own = torch.arange(5)
    plain = torch.from_numpy(similarity)
    expected = (torch.nn.functional.cross_entropy(plain, own) + torch.nn.functional.cross_entropy(plain.T, own)) / 2
    assert contrast(plain, own).item() == pytest.approx(expected.item(), rel=1e-10)


def test_images_without_a_class_count_nothing_and_alone_do_no_harm():
    method = _method().eval()
    batch = _batch([0, 1, -1, 0])
    without = Batch(batch.images[[0, 1, 3]], batch.grey[:3], [0, 1, 3], labels=torch.tensor([0, 1, 0]))
    assert method(batch).loss.item() == pytest.approx(method(without).loss.item(), rel=1e-5)
    empty = method(_batch([-1, -1]))
    assert empty.loss.item() == 0
    empty.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


def test_prompts_are_made_of_class_names_and_padding_changes_nothing():
    tower = WordTower(["a benign lesion", "an image of one malignant lesion"]).eval()
    short = WordTower(["a benign lesion"]).eval()
    words = {
        word: i for i, word in enumerate(sorted({"a", "benign", "lesion", "an", "image", "of", "one", "malignant"}))
    }
    assert tower.ids[0].tolist()[:3] == [words["a"], words["benign"], words["lesion"]]
    with torch.no_grad():
        short.load_state_dict(
            tower.state_dict()
            | {
                "words.weight": tower.words.weight[[words["a"], words["benign"], words["lesion"]]],
                "places": tower.places[:3],
            }
        )
        assert torch.allclose(tower([1, 0])[1], short([0])[0], atol=1e-5)


def test_it_learns_to_tell_stripes_from_none():
    torch.manual_seed(0)
    method = _method(prompt="an image of {label} tissue")
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    for step in range(80):
        labels = torch.arange(8) % 2
        torch.manual_seed(step)
        stripes = (torch.arange(32) % 8 < 4).float().expand(1, 1, 32, 32)
        images = 0.2 * torch.rand(8, 1, 32, 32) + 0.7 * labels.view(-1, 1, 1, 1) * stripes
        result = method(Batch(images, torch.ones(8, dtype=torch.bool), list(range(8)), labels=labels))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert result.terms["accuracy"] == 1
    assert result.loss < 1.7  # log 4 and a bit is all that 4 positives of 8 allow


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_a_text_model_of_a_local_folder_gives_the_vectors(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "an", "image", "of", "benign", "malignant"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(tmp_path)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(vocab_size=6, **small))
    else:
        text, vision = small | {"vocab_size": 6, "eos_token_id": 5}, small | {"image_size": 32, "patch_size": 16}
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
    model.eval().save_pretrained(tmp_path)
    method = _method(prompt="an image of {label}", text_encoder=str(tmp_path))
    found = method.text([1, 0])
    with torch.no_grad():
        for row, name in enumerate(("malignant", "benign")):  # one by one, so that nothing is padded
            ids = torch.tensor([[words.index(word) for word in ("an", "image", "of", name)]])
            if kind == "bert":
                expected = model(input_ids=ids).last_hidden_state.mean(1)
            else:
                expected = model.text_projection(model.text_model(input_ids=ids).pooler_output)
            assert torch.allclose(found[row], expected[0], atol=1e-5)
    assert method(_batch([0, 1, 1])).loss.isfinite()
    assert not [name for name, _ in method.named_parameters() if name.startswith("text.")]  # it stays as it is
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no text model can be opened there"):
        _method(text_encoder=str(tmp_path / "empty"))


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(InputError, match="labels of two classes or more"):
        _method(classes=("benign",))
    with pytest.raises(InputError, match=r"\{label\}"):
        CLIP(prompt="an image")
    with pytest.raises(InputError, match=r"no such folder|pip install"):
        _method(text_encoder=str(tmp_path / "none"))
