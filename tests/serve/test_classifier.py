"""Classifiers from models and from artifacts, the latter pretended: what compiles real ones takes minutes."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.serve.serving import picture, served
from tvm_na.deploy.manifest import TensorSpec
from tvm_na.images.preprocessing import Preprocessing
from tvm_na.models import NAT, attention_maps
from tvm_na.serve import classifier as classifiers
from tvm_na.serve.classifier import artifact_classifier, eager_classifier
from tvm_na.serve.overlay import GAP, draw_overlay, map_size

SIZE = 40
PREPROCESSING = Preprocessing(input_size=SIZE)


def nat(seed: int = 0, num_classes: int = 7) -> NAT:
    torch.manual_seed(seed)
    stages = {"depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "kernel_size": 3}
    return NAT(embed_dim=8, num_classes=num_classes, backend="reference", **stages).eval()


@pytest.fixture
def artifact(monkeypatch):
    """What ``load`` gives, made of a model; its manifest's fields can be changed."""
    calls = []

    def make(model: NAT, **changes):
        fields = {
            "model": {"name": "nat_x", "weights": "x.pth"},
            "preprocessing": asdict(PREPROCESSING),
            "input": TensorSpec((None, 3, SIZE, SIZE), "float32"),
            "outputs": [TensorSpec((None, model.num_classes), "float32")],
            "returns_list": False,
            "check": {"budget": 1e-4},
            **changes,
        }
        manifest = SimpleNamespace(**fields, batch=fields["input"].shape[0])

        class Pretended:
            path = "x.artifact"

            def __call__(self, images):
                calls.append(tuple(images.shape))
                assert images.dtype == getattr(torch, manifest.input.dtype)
                with torch.no_grad():
                    return model(images.float()).to(images.dtype)

        Pretended.manifest = manifest
        monkeypatch.setattr(classifiers, "load", lambda path: Pretended())
        return calls

    return make


def test_a_model_is_served_with_overlays():
    model = nat()
    classifier = eager_classifier(model, "nat_x", PREPROCESSING, None, random_weights=True)
    with served(classifier) as server:
        answer = server.classify(picture(100)).json()
        assert answer["random_weights"] is True
        assert len(answer["predictions"]) == 5
        x = torch.tensor([100, 155, 77]).view(3, 1, 1) / 255
        x = (
            (x - torch.tensor(PREPROCESSING.mean).view(3, 1, 1)) / torch.tensor(PREPROCESSING.std).view(3, 1, 1)
        ).expand(3, SIZE, SIZE)
        with torch.no_grad():
            expected = model(x[None])[0].softmax(-1).topk(5)
        assert [found["index"] for found in answer["predictions"]] == expected.indices.tolist()
        assert [found["probability"] for found in answer["predictions"]] == pytest.approx(
            expected.values.tolist(), abs=1e-5
        )
        png = server.http.post("/overlay?row=5&column=30", files={"image": picture(100)}).content
        maps = attention_maps(model, x, (5, 30))
        image = Image.new("RGB", (SIZE, SIZE), (100, 155, 77))
        assert (
            Image.open(io.BytesIO(png)).tobytes()
            == Image.open(io.BytesIO(draw_overlay(image, maps, (5, 30)))).tobytes()
        )


def test_sizes_of_maps_are_the_models():
    stages = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "kernel_size": 3}
    model = NAT(embed_dim=8, features_only=True, backend="reference", **stages)
    for size in (32, 33, 40, 61):
        with torch.no_grad():
            maps = model(torch.zeros(1, 3, size, size))
        assert [map_size(size, stage) for stage in range(4)] == [m.shape[2] for m in maps]


def test_an_overlay_shows_the_attention_where_it_is():
    image = Image.new("RGB", (32, 32), "black")
    attention = torch.zeros(8, 8)
    attention[1, 6], attention[2, 5] = 0.75, 0.25
    drawn = Image.open(io.BytesIO(draw_overlay(image, [attention], (31, 0))))
    most, some, none = (drawn.getpixel((x, y)) for x, y in ((26, 6), (22, 10), (26, 10)))
    assert most[0] > 190 and 55 < some[0] < 85 and none == (0, 0, 0)
    assert [drawn.getpixel(p) for p in ((20, 4), (27, 11), (20, 11), (27, 4))] == [(255, 255, 255)] * 4  # the frame
    assert drawn.getpixel((0, 30)) == (0, 229, 255)  # the query
    padded = torch.ones(12, 12)
    shown = Image.open(io.BytesIO(draw_overlay(image, [padded, padded], (0, 0))))
    assert shown.size == (64 + GAP, 32)
    assert shown.getpixel((63 + GAP, 31)) == (255, 255, 255)


def test_an_artifact_is_served_without_overlays(artifact):
    artifact(nat())
    classifier = artifact_classifier("x.artifact", None, None)
    assert (classifier.name, classifier.classes, classifier.random_weights) == ("nat_x", 7, False)
    with served(classifier) as server:
        assert server.classify(picture(1)).status_code == 200
        refused = server.http.post("/overlay", files={"image": picture(1)})
        assert refused.status_code == 501
        assert "compiled artifact, which gives no attention maps; start it with --weights" in refused.json()["error"]
        with pytest.raises(ValueError, match="attention: required an eager model, got none"):
            classifier.attend(torch.zeros(3, SIZE, SIZE), (0, 0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_artifact_for_a_fixed_batch_takes_any(artifact, dtype):
    model = nat()
    calls = artifact(model, input=TensorSpec((4, 3, SIZE, SIZE), dtype))
    classifier = artifact_classifier("x.artifact", None, None)
    images = torch.randn(6, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(images).float(), model(images), rtol=1e-4, atol=1e-5)
    assert calls == [(4, 3, SIZE, SIZE)] * 2
    assert len(classifier.predict(list(images))) == 6


def test_an_eager_copy_must_be_the_same_model(artifact):
    artifact(nat())
    asked = []

    def copy(name, classes):
        asked.append((name, classes))
        return nat()

    classifier = artifact_classifier("x.artifact", None, copy)
    assert asked == [("nat_x", 7)]
    assert len(classifier.attend(torch.zeros(3, SIZE, SIZE), (0, 0))) == 4
    with pytest.raises(ValueError, match="weights: required the model that the artifact .* got logits that differ by"):
        artifact_classifier("x.artifact", None, lambda name, classes: nat(seed=1))
    with pytest.raises(ValueError, match="got 9 classes in place of 7"):
        artifact_classifier("x.artifact", None, lambda name, classes: nat(num_classes=9))


def test_what_is_no_classifier_of_images(artifact):
    cases = [
        ({"preprocessing": None}, "artifact: required one that knows its preprocessing"),
        (
            {"preprocessing": asdict(replace(PREPROCESSING, input_size=64))},
            r"required the input .*3, 64, 64.*, got float32",
        ),
        ({"returns_list": True}, "artifact: required one output"),
        ({"outputs": [TensorSpec((None, 7, 5, 5), "float32")]}, "artifact: required one output"),
    ]
    for changes, message in cases:
        artifact(nat(), **changes)
        with pytest.raises(ValueError, match=message):
            artifact_classifier("x.artifact", None, None)
