"""NAT as a backbone of transformers: examples/hf_backbone.py, and the detector and the segmenter built on it."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.examples.running import EXAMPLES, imported, run
from tests.helpers import relative_error
from tvm_na.models import NAT, create_model, problems_of
from tvm_na.models.registry import ModelSpec
from tvm_na.reference.accuracy import LOGITS_BUDGET

TINY = ModelSpec("nat_test", 32, (1, 1, 1, 1), (1, 2, 4, 8), 2.0, 0.0, 0, layer_scale=0.5, kernel_size=3)
SIZE = (64, 96)


@pytest.fixture(scope="module")
def ex() -> SimpleNamespace:
    """The four modules of the examples. Imported here, since transformers takes seconds in every process."""
    pytest.importorskip("transformers", reason="tests/examples/test_backbone.py needs transformers")
    return imported(("hf_backbone", "shapes", "detect", "segment"))


@pytest.fixture
def large(request: pytest.FixtureRequest) -> None:
    if os.environ.get("TVM_NA_TEST_LARGE") != "1":
        pytest.skip(f"{request.node.name} takes a minute and gigabytes, TVM_NA_TEST_LARGE is not 1")


def segmenter_of(ex: SimpleNamespace, **options: Any) -> Any:
    return ex.segment.build_segmenter(ex.hf_backbone.NatConfig.of(TINY.name, **options)).eval()


def detector_of(ex: SimpleNamespace, **options: Any) -> Any:
    return ex.detect.build_detector(ex.hf_backbone.NatConfig.of(TINY.name, (1, 2, 3), **options)).eval()


# --- the backbone


def test_a_backbone_gives_the_maps_of_nat(ex):
    from transformers import AutoBackbone

    backbone = AutoBackbone.from_config(ex.hf_backbone.NatConfig.of(TINY.name, (0, 2, 3), backend="compiled")).eval()
    assert isinstance(backbone, ex.hf_backbone.NatBackbone)
    assert (backbone.channels, backbone.out_features) == ([32, 128, 256], ["stage1", "stage3", "stage4"])
    nat = create_model(TINY.name, features_only=True, out_indices=(0, 2, 3), backend="reference").eval()
    nat.load_state_dict(backbone.nat.state_dict())
    x = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        maps, expected = backbone(x).feature_maps, nat(x)
        assert isinstance(backbone(x, return_dict=False)[0], tuple)
    assert [m.shape for m in maps] == [m.shape for m in expected]
    assert max(map(relative_error, maps, expected)) <= LOGITS_BUDGET


def test_a_backbone_keeps_no_hidden_states(ex):
    backbone = ex.hf_backbone.NatBackbone(ex.hf_backbone.NatConfig.of(TINY.name))
    with pytest.raises(ValueError, match="output_hidden_states: required False"):
        backbone(torch.randn(1, 3, *SIZE), output_hidden_states=True)


def test_stages_go_by_index_or_by_name(ex):
    config = ex.hf_backbone.NatConfig
    assert config().out_features == ["stage4"]
    assert config(out_features=["stage2", "stage4"]).out_indices == [1, 3]
    assert ex.hf_backbone.NatBackbone(config.of(TINY.name, (-2, -1))).nat.out_indices == (2, 3)
    with pytest.raises(ValueError, match="out_features must be a subset"):
        config(out_features=["stem"])
    with pytest.raises(ValueError, match="name: required one of nat_pico, nat_mini"):
        config.of("resnet50")


def test_dinat_keeps_its_dilations_and_other_families_are_refused(ex):
    config = ex.hf_backbone.NatConfig.of("dinat_mini")
    config = type(config).from_dict(json.loads(config.to_json_string()))
    assert [list(stage) for stage in config.dilations] == [[1, 8, 1], [1, 4, 1, 4], [1, 2, 1, 2, 1, 2], [1] * 5]
    with pytest.raises(ValueError, match="name: required a NAT or DiNAT, got 'dinat_s_tiny'"):
        ex.hf_backbone.NatConfig.of("dinat_s_tiny")


def test_a_model_around_it_leaves_the_weights_of_nat_alone(ex):
    nat = segmenter_of(ex).backbone.nat
    block = nat.levels[0].blocks[0]
    assert block.gamma1.unique().tolist() == [TINY.layer_scale]
    assert 0.015 < block.mlp.fc1.weight.std() < 0.022 and not block.mlp.fc1.bias.any()
    assert 0 < block.attn.rpb.abs().max() < 0.1
    assert nat.patch_embed.proj[0].weight.std() > 0.05  # a convolution's own, not transformers' 0.02


def test_what_a_checkpoint_lacks_is_initialised_as_nat_does_it(ex, tmp_path):
    from safetensors.torch import load_file, save_file

    segmenter = segmenter_of(ex)
    segmenter.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if ".levels." not in key}
    save_file(kept, file, metadata={"format": "pt"})
    loaded = type(segmenter).from_pretrained(tmp_path)
    assert torch.equal(loaded.backbone.nat.patch_embed.norm.weight, segmenter.backbone.nat.patch_embed.norm.weight)
    for level in loaded.backbone.nat.levels:
        block = level.blocks[0]
        assert block.gamma2.unique().tolist() == [TINY.layer_scale]
        assert block.norm1.weight.unique().tolist() == [1.0]
        assert 0.015 < block.attn.qkv.weight.std() < 0.022 and 0 < block.attn.rpb.abs().max() < 0.1


def test_a_saved_detector_comes_back_with_its_backbone(ex, tmp_path):
    detector = detector_of(ex)
    detector.save_pretrained(tmp_path)
    loaded = type(detector).from_pretrained(tmp_path)
    assert isinstance(loaded.config.backbone_config, ex.hf_backbone.NatConfig)
    x = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(loaded(x).pred_boxes, detector(x).pred_boxes)


def test_other_models_take_it(ex):
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
    )

    config, x = ex.hf_backbone.NatConfig.of(TINY.name), torch.randn(1, 3, *SIZE)
    small = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_attention_heads": 2}
    mask2former = Mask2FormerConfig(backbone_config=config, encoder_layers=1, decoder_layers=2, num_queries=7, **small)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_feature_levels": 4, "num_queries": 7}
    deformable = DeformableDetrConfig(backbone_config=config, **sizes)
    with torch.no_grad():
        masks = Mask2FormerForUniversalSegmentation(mask2former).eval()(x).masks_queries_logits
        boxes = DeformableDetrForObjectDetection(deformable).eval()(x).pred_boxes
    assert masks.shape == (1, 7, 16, 24) and boxes.shape == (1, 7, 4)
    assert masks.isfinite().all() and boxes.isfinite().all()


def test_kernels_serve_the_training_around_a_frozen_backbone(ex):
    segmenter, shapes = segmenter_of(ex, drop_path_rate=0.5), ex.shapes
    backbone = segmenter.backbone
    backbone.freeze()
    backbone.nat.set_backend("compiled")
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    draw = partial(shapes.draw_scenes, SIZE, 2, random.Random(0))
    shapes.train(segmenter, partial(ex.segment.loss_of, segmenter), draw, 1, 1e-3)
    segmenter.train()
    assert segmenter.decode_head.training and not any(module.training for module in backbone.modules())
    for name, value in segmenter.state_dict().items():
        assert torch.equal(value, before[name]) or not name.startswith("backbone."), name
    assert not torch.equal(segmenter.decode_head.classifier.weight, before["decode_head.classifier.weight"])


COCO = {
    (800, 1280): [(200, 320), (100, 160), (50, 80), (25, 40)],
    (801, 1333): [(201, 334), (101, 167), (51, 84), (26, 42)],
}


@pytest.mark.parametrize("size", list(COCO), ids=str)
def test_problems_at_the_sizes_of_coco(size):
    nat = create_model("nat_mini", features_only=True)
    problems = problems_of(nat, size)
    assert [problem.spatial for problem in problems] == COCO[size]
    assert list(problems.values()) == [3, 4, 6, 5]


# --- pictures of shapes


def test_boxes_hold_their_shapes(ex):
    for scene in ex.shapes.draw_scenes((70, 101), 20, random.Random(1)):
        assert scene.image.size == (101, 70) and scene.mask.shape == (70, 101)
        rest = scene.mask.clone()
        for label, (left, top, right, bottom) in zip(scene.labels, scene.boxes, strict=True):
            inside = rest[top : bottom + 1, left : right + 1]
            rows, columns = inside.nonzero().unbind(1)
            assert inside.unique().tolist() in ([label + 1], [0, label + 1])
            assert (int(rows.max()), int(columns.max())) == (bottom - top, right - left)
            assert (int(rows.min()), int(columns.min())) == (0, 0)
            inside.zero_()
        assert not rest.any()


@pytest.mark.parametrize("text", ["", "256", "256x", "63x64", "ax64", "64x64x64", "-64x64"])
def test_a_size_is_height_and_width(ex, text):
    assert ex.shapes.parse_size("64x1333") == (64, 1333)
    with pytest.raises(ValueError, match="size: required height and width of at least 64 such as 256x320, got"):
        ex.shapes.parse_size(text)


# --- the detector and the segmenter


def test_boxes_survive_the_way_to_targets_and_back(ex):
    """A model that answers with the targets; the picture is no multiple of 32, so boxes are over the padded one."""
    (scene,) = ex.shapes.draw_scenes((75, 130), 1, random.Random(5))
    target = ex.detect.targets_of(scene)
    assert ex.detect.inputs_of([scene]).shape == (1, 3, 96, 160)
    logits = torch.full((1, len(scene.labels), 2), -9.0)
    for row, label in enumerate(scene.labels):
        logits[0, row, label] = 9.0 - row

    def model(pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=logits, pred_boxes=target["boxes"][None])

    found = ex.detect.detect(model, scene)[: len(scene.labels)]
    assert [d.label for d in found] == [ex.shapes.CLASSES[label] for label in scene.labels]
    for detection, (left, top, right, bottom) in zip(found, scene.boxes, strict=True):
        assert detection.box == pytest.approx((left, top, right + 1, bottom + 1), abs=1e-3)


def learns(ex: SimpleNamespace, model: Any, loss_of: Any, draw: Any) -> bool:
    losses = ex.shapes.train(model, partial(loss_of, model), draw, 20, 2e-3).losses
    return sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_detectors_and_segmenters_learn(ex):
    draw = partial(ex.shapes.draw_scenes, SIZE, 2, random.Random(0))
    assert learns(ex, detector_of(ex), ex.detect.loss_of, draw)
    segmenter = segmenter_of(ex)
    assert learns(ex, segmenter, ex.segment.loss_of, draw)
    (scene,) = draw()[:1]
    overlap = ex.segment.overlaps_of(ex.segment.segment(segmenter, scene), scene.mask)[0]
    assert overlap.name == "background" and overlap.true == int((scene.mask == 0).sum())


def test_masks_are_compared_and_drawn(ex):
    background, rectangle, ellipse = ex.segment.overlaps_of(torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 0, 1, 1]]))
    assert (background.true, background.found, background.iou) == (2, 2, pytest.approx(1 / 3))
    assert rectangle.iou == background.iou and (ellipse.true, ellipse.found, ellipse.iou) == (0, 0, None)
    image, found = ex.shapes.draw_scene(SIZE, random.Random(0)).image, torch.zeros(SIZE, dtype=torch.int64)
    found[3, 5] = 2
    picture = ex.segment.draw_mask(image, found)
    assert [at for at in itertools.product(range(96), range(64)) if picture.getpixel(at) != image.getpixel(at)] == [
        (5, 3)
    ]


# --- the scripts


@pytest.mark.parametrize("name", ["detect", "segment"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_an_example(ex, tmp_path, name, frozen):
    from PIL import Image

    weights, output = tmp_path / "nat.pth", tmp_path / "new" / "picture.png"
    torch.save(create_model(TINY.name).state_dict(), weights)
    options = ("--model", TINY.name, "--weights", weights, "--size", "64x96", "--output", output)
    out = run(getattr(ex, name), *options, *(["--freeze-backbone"] if frozen else ["--steps", 2]))
    shown = r"loss \d+\.\d+; 1 step of \d" if frozen else r"loss \d+\.\d+ to \d+\.\d+; 2 steps of \d"
    assert re.search(shown, out)
    assert re.search(r"inference at 64x96: \d+\.\d\d s; peak memory so far \d+\.\d GB", out)
    assert "random weights" not in out and "does not fit as it is\nadapted: " in out
    with Image.open(output) as picture:
        assert picture.size == (96, 64)


def test_an_example_without_training(ex, tmp_path):
    out = run(ex.detect, "--model", TINY.name, "--size", "64x96", "--steps", 0, "--output", tmp_path / "p.png")
    assert "no training" in out and "NAT has random weights" in out and "p.png has the picture" in out


def test_errors_of_an_example(ex, tmp_path):
    assert "error: size: required" in run(ex.detect, "--size", "20x20", code=2)
    assert "error: name: required one of nat_pico, nat_mini" in run(ex.segment, "--model", "nat", code=2)
    missing = run(ex.detect, "--model", TINY.name, "--weights", tmp_path / "none.pth", code=2)
    assert "required an existing file" in missing


# --- large: TVM_NA_TEST_LARGE=1


@pytest.mark.slow
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("size", list(COCO), ids=str)
def test_kernels_at_the_sizes_of_coco(size):
    """They build, and NAT-Mini's maps are the reference's."""
    nat: NAT = create_model("nat_mini", features_only=True, backend="compiled").eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        maps = nat(x)
        nat.set_backend("reference")
        assert max(map(relative_error, maps, nat(x))) <= LOGITS_BUDGET
    assert [m.shape[2:] for m in maps] == [torch.Size(spatial) for spatial in COCO[size]]


@pytest.mark.slow
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", ["detect", "segment"])
def test_an_example_at_the_size_of_coco(tmp_path, name):
    """One step around a frozen NAT-Mini and one inference, in a process of its own for the sake of its peak memory."""
    script, output = EXAMPLES / f"{name}.py", tmp_path / "picture.png"
    command = [sys.executable, script, "--size", "800x1280", "--freeze-backbone", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    found = re.search(r"peak memory so far (\d+\.\d) GB", done.stdout)
    assert found and float(found[1]) < 8.0
    assert output.is_file()
