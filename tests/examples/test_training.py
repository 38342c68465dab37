"""examples/train_digits.py and examples/finetune_photos.py: what they learn, and that stopping them changes nothing."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from tests.cli.invoking import invoke
from tests.examples.running import imported, run
from tvm_na.models import create_model
from tvm_na.models.registry import SMALL_32, SPECS, ModelSpec

MODULES = ("guards", "recipe", "saving", "training", "photos", "train_digits", "finetune_photos")
#: The first stages of nat_pico, whose kernels are built anyway, with drop path.
TINY = ModelSpec("nat_test", 32, (1, 1), (1, 2), 2.0, 0.2, 0, kernel_size=3, preprocessing=SMALL_32)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def ex() -> SimpleNamespace:
    return imported(MODULES)


@pytest.fixture
def digits(ex: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example on digits, with a tiny model, which draws random numbers in every step, few images to test."""
    pytest.importorskip("sklearn", reason="examples/train_digits.py needs scikit-learn")
    monkeypatch.setattr(ex.train_digits, "MODEL", TINY.name)
    monkeypatch.setattr(ex.train_digits, "TEST_IMAGES", 47)
    return ex.train_digits


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six red and seven blue photographs of noise, a broken one, and a file that is none."""
    folder, rng = tmp_path_factory.mktemp("photos"), random.Random(0)
    for color, count in (("red", 6), ("blue", 7)):
        (folder / color / "more").mkdir(parents=True)
        for number in range(count):
            noise = Image.frombytes("RGB", (48, 40), rng.randbytes(3 * 48 * 40))
            image = Image.blend(Image.new("RGB", noise.size, color), noise, 0.4)
            image.save(folder / color / ("more" if number == 2 else ".") / f"{number}.{'png' if number % 2 else 'jpg'}")
    (folder / "red" / "broken.jpg").write_bytes((folder / "red" / "0.jpg").read_bytes()[:300])
    (folder / "red" / "notes.txt").write_text("red")
    return folder


def interrupt_after(steps: int, ex: SimpleNamespace, patch: pytest.MonkeyPatch) -> None:
    """Send what Ctrl-C sends in the step after which there are ``steps``."""
    step = ex.training.Learner.step

    def interrupted(self: Any, group: Any) -> None:
        step(self, group)
        if self.steps == steps:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(ex.training.Learner, "step", interrupted)


def state_of(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    (checkpoint,) = folder.glob("checkpoint-*")
    return load_file(checkpoint / "model.safetensors"), torch.load(checkpoint / "state.pt", weights_only=True)


def assert_same(one: Any, other: Any) -> None:
    """The same to the bit, whatever it is made of."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


# --- runs that were stopped, and repeated


def test_a_seed_settles_every_bit(digits, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        digits.train(digits.Settings(2, 32, seed=seed, images=64), tmp_path / name, QUIET)
    assert_same(state_of(tmp_path / "a"), state_of(tmp_path / "b"))
    weights = (load_file(tmp_path / name / "nat_test.safetensors") for name in "ac")
    assert not torch.equal(*(tensors["head.weight"] for tensors in weights))


def test_two_threads_change_nothing_from_run_to_run(ex):
    torch.set_num_threads(2)
    batch, states = (torch.randn(8, 3, 32, 32), torch.arange(8)), []
    for _ in range(2):
        with ex.guards.reproducible(0):
            learner = ex.training.Learner(create_model(TINY.name, num_classes=8), ex.recipe.Recipe(1, 2, 1e-3), {})
            learner.step([batch])
            states.append({**learner.state(), **learner.model.state_dict()})
    assert_same(*states)


@pytest.mark.parametrize("steps", [2, 3], ids=["between epochs", "in an epoch"])
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(digits, ex, tmp_path, monkeypatch, steps):
    settings = digits.Settings(3, 32, images=64)
    whole = digits.train(settings, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        interrupt_after(steps, ex, patch)
        first = digits.train(settings, tmp_path / "parts", QUIET)
    assert (first.ended, first.weights, first.images) == ("interrupted", None, steps * 32)
    assert state_of(tmp_path / "parts")[1]["progress"][0] == steps
    torch.manual_seed(99)
    second = digits.train(settings, tmp_path / "parts", QUIET)
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    assert (second.accuracy, second.images, second.ended) == (whole.accuracy, (6 - steps) * 32, "")


def test_ctrl_c_on_the_command_line(digits, ex, tmp_path, monkeypatch):
    options = ("--images", 64, "--batch-size", 32, "--epochs", 2, "--output", tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupt_after(1, ex, patch)
        out = run(digits, *options, code=130)
    assert f"interrupted; the run is kept in {tmp_path}: repeat the command to go on" in out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not torch.are_deterministic_algorithms_enabled()
    assert "going on after step 1 of 4" in run(digits, *options)
    assert "there was nothing left to train" in run(digits, *options)
    assert "going on" not in run(digits, *options, "--no-resume")


def test_a_second_ctrl_c_is_not_waited_for(ex):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what is in the background without
    try:
        with ex.guards.stopping(None) as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop() and stop.reason == "interrupted"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_time_limit_ends_a_run_with_a_result(digits, tmp_path):
    options = ("--images", 64, "--batch-size", 32, "--epochs", 9, "--output", tmp_path)
    out = run(digits, *options, "--time-limit", 0)
    assert "the time is up" in out and "test accuracy" in out
    assert state_of(tmp_path)[1]["progress"][0] == 1 and (tmp_path / "nat_test.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "name"), [({"epochs": 3}, "epochs"), ({"lr": 1e-3}, "lr"), ({"images": 32}, "images")]
)
def test_another_run_is_not_gone_on_with(digits, tmp_path, change, name):
    settings = {"epochs": 1, "batch_size": 32, "images": 64}
    digits.train(digits.Settings(**settings), tmp_path, QUIET)
    with pytest.raises(ValueError, match=f"^{name}: required .* as in the run to go on with, or --no-resume, got"):
        digits.train(digits.Settings(**settings | change), tmp_path, QUIET)


# --- checkpoints


def test_the_last_checkpoint_is_kept(ex, tmp_path):
    checkpoints = ex.saving.Checkpoints(tmp_path)
    assert checkpoints.latest() is None and checkpoints.load() is None
    for steps in (9, 10):
        checkpoints.save({"w": torch.full((2,), float(steps))}, {"steps": steps}, steps)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    weights, state = checkpoints.load()
    assert weights["w"].tolist() == [10, 10] and state == {"steps": 10}
    checkpoints.clear()
    assert not list(tmp_path.iterdir())


def test_a_crash_while_saving_leaves_the_former_checkpoint(ex, tmp_path, monkeypatch):
    checkpoints = ex.saving.Checkpoints(tmp_path)
    checkpoints.save({"w": torch.zeros(1)}, {}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", _fail)
        with pytest.raises(OSError, match="full"):
            checkpoints.save({"w": torch.ones(1)}, {}, 2)
    assert checkpoints.load()[0]["w"].tolist() == [0]
    checkpoints.save({"w": torch.ones(1)}, {}, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def _fail(*_: object) -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:50]), Path.unlink])
def test_a_damaged_checkpoint_is_an_error(ex, tmp_path, file, damage: Callable[[Path], Any]):
    checkpoints = ex.saving.Checkpoints(tmp_path)
    checkpoints.save({"w": torch.zeros(100)}, {"rng": torch.get_rng_state()}, 7)
    damage(tmp_path / "checkpoint-7" / file)
    with pytest.raises(ValueError, match="^output: required a whole checkpoint, or --no-resume, got .*checkpoint-7"):
        checkpoints.load()


# --- how it learns


def test_the_learning_rate_rises_and_falls(ex):
    recipe = ex.recipe.Recipe(epochs=10, steps=10, lr=1.0, warmup=0.1)
    rates = [recipe.rate(step) for step in range(101)]
    assert rates[:2] == [0.1, 0.2] and rates[9] == rates[10] == 1.0 and rates[100] == pytest.approx(0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert ex.recipe.Recipe(epochs=1, steps=1, lr=1.0).rate(0) == 1.0


def test_norms_biases_and_position_biases_do_not_decay(ex):
    model = create_model(TINY.name, num_classes=3)
    decayed, others = ex.recipe.optimizer_of(model, ex.recipe.Recipe(1, 1, 1e-3)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert {names[id(p)].rsplit(".", 1)[1] for p in others["params"]} == {"bias", "rpb", "weight"}
    assert all("norm" in names[id(p)] for p in others["params"] if names[id(p)].endswith("weight"))
    assert not any("norm" in names[id(p)] for p in decayed["params"])
    assert len(names) == len(decayed["params"]) + len(others["params"])


def test_batches_that_share_an_update_are_one_batch(ex):
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    learners = []
    for parts in ([slice(0, 8)], [slice(0, 3), slice(3, 8), slice(0, 0)]):
        torch.manual_seed(0)
        model = create_model(TINY.name, num_classes=3, drop_path_rate=0.0)
        learner = ex.training.Learner(model, ex.recipe.Recipe(1, 1, 1e-3), {})
        learner.step([(x[part], y[part]) for part in parts])
        learners.append(learner)
    one, other = learners
    assert one.totals.seen == other.totals.seen == 8 and one.totals.loss == pytest.approx(other.totals.loss)
    for mine, theirs in zip(one.learning, other.learning, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_step_without_a_whole_image_changes_no_weight(ex):
    model = create_model(TINY.name, num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learner = ex.training.Learner(model, ex.recipe.Recipe(1, 2, 1e-3), {})
    learner.step([(torch.empty(0, 3, 32, 32), torch.empty(0, dtype=torch.int64))])
    assert learner.steps == 1
    assert_same(before, model.state_dict())


# --- digits


def test_digits_are_split_by_class_and_always_the_same(ex):
    pytest.importorskip("sklearn")
    (train, test, sample), again = ex.train_digits.load_digits(), ex.train_digits.load_digits()
    assert train.images.shape == (1347, 1, 32, 32) and test.images.shape == (450, 1, 32, 32)
    assert test.labels.bincount().min() >= 43 and torch.equal(test.images, again[1].images)
    assert train.images.min() >= 0.0 and 0.9 < train.images.max() <= 1.0 and sample.size == (8, 8)


def test_an_epoch_has_every_digit_once(digits):
    data = digits.Digits(torch.rand(50, 1, 32, 32), torch.arange(50))
    settings = digits.Settings(batch_size=16)
    batches = list(digits.batches_of(data, settings, 4, epoch=1, skipped=0))
    assert [len(y) for _, y in batches] == [13, 13, 12, 12]
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(50))
    assert_same([list(batch) for batch in digits.batches_of(data, settings, 4, 1, 2)], [list(b) for b in batches[2:]])
    other = next(digits.batches_of(data, settings, 4, epoch=2, skipped=0))[1]
    assert not torch.equal(other, batches[0][1])


def test_augmentation_moves_what_is_there_a_bit(digits, monkeypatch):
    images = torch.zeros(6, 1, 32, 32)
    images[:, :, 12:20, 12:20] = 1.0
    moved = digits.augment(images, torch.Generator().manual_seed(0))
    assert moved.min() >= 0 and moved.max() <= 1.0001
    assert all(0.6 < total / 64 < 1.6 for total in moved.sum((1, 2, 3)).tolist())
    assert len({round(total, 3) for total in moved.sum((1, 2, 3)).tolist()}) == 6
    for name in ("TURN", "SCALE", "SHIFT"):
        monkeypatch.setattr(digits, name, 0.0)
    torch.testing.assert_close(digits.augment(images, torch.Generator()), images, atol=1e-5, rtol=0)


def test_nat_pico_learns_digits_and_tells_them_on_the_command_line(ex, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(ex.train_digits, "TEST_IMAGES", 150)
    out = run(ex.train_digits, "--images", 200, "--batch-size", 16, "--epochs", 5, "--output", tmp_path)
    accuracy = float(re.search(r"test accuracy (\d+\.\d+)% of 150 images; \d+\.\d s of training, \d+ images/s", out)[1])
    assert accuracy > 40  # of 10 classes, by a fortieth of the work of a whole run
    command = next(line for line in out.splitlines() if line.startswith("tvm-na run"))
    said = invoke(*command.split()[1:], "--backend", "reference", "--top", 1).output
    assert re.search(r"\b\d\b.*%", said)
    model = create_model("nat_pico", num_classes=10, weights=tmp_path / "nat_pico.safetensors", backend="reference")
    test = ex.train_digits.load_digits()[1]
    evaluated = ex.training.accuracy_of(model, [test.batch(slice(None))])
    assert evaluated * 100 == pytest.approx(accuracy, abs=0.3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_of_activations_and_weights_stay_float32(digits, tmp_path, precision):
    seen = {True: set(), False: set()}  # of linear layers, in training and in evaluation

    def keep(module: torch.nn.Module, _: Any, out: Any) -> None:
        if type(module) is torch.nn.Linear:
            seen[module.training].add(out.dtype)

    options = ("--images", 32, "--epochs", 1, "--output", tmp_path)
    with torch.nn.modules.module.register_module_forward_hook(keep):
        run(digits, *options, "--precision", precision)
    assert seen == {True: {getattr(torch, precision)}, False: {torch.float32}}
    assert {weight.dtype for weight in load_file(tmp_path / f"{digits.MODEL}.safetensors").values()} == {torch.float32}
    other = {"float32": "bfloat16", "bfloat16": "float32"}[precision]
    assert "precision: required" in run(digits, *options, "--precision", other, code=2)


@pytest.mark.slow
def test_digits_are_learnt_in_bfloat16(ex, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    # A tenth of nat_pico's work: PyTorch's own products in bfloat16 are slow where a CPU has no instructions for them.
    spec = ModelSpec("nat_digits", 16, (1, 1, 1), (1, 2, 4), 1.0, 0.0, 0, kernel_size=3, preprocessing=SMALL_32)
    monkeypatch.setitem(SPECS, spec.name, spec)
    monkeypatch.setattr(ex.train_digits, "MODEL", spec.name)
    recipe = ("--epochs", 7, "--batch-size", 16, "--lr", 7e-3, "--precision", "bfloat16")
    run(ex.train_digits, *recipe, "--output", tmp_path, "--require-accuracy", 97)


def test_errors_of_the_example_on_digits(digits, tmp_path):
    quick = ("--images", 32, "--epochs", 1, "--output", tmp_path)
    assert "required 100 % accuracy" in run(digits, *quick, "--require-accuracy", 100, code=1)
    assert "error: images: required 1 to 1750 images, got 2000" in run(digits, "--images", 2000, code=2)
    assert "error: lr: required a learning rate above 0, got 0.0" in run(digits, *quick, "--lr", 0, code=2)
    (tmp_path / "file").touch()
    assert "error: output: required a folder" in run(digits, *quick[:-1], tmp_path / "file", code=2)
    run(digits, "--epochs", 0, code=2)
    run(digits, "--backend", "cuda", code=2)


# --- photographs


def finetune(ex: SimpleNamespace, photos: Path, folder: Path, machine: dict | None = None, **settings: Any) -> Any:
    settings = {"model": TINY.name, "epochs": 2, "batch_size": 3, "accumulate": 2, **settings}
    example = ex.finetune_photos
    weights = settings.pop("weights", None)
    return example.finetune(
        photos, folder, example.Settings(**settings), example.Machine(**machine or {}), QUIET, weights=weights
    )


def test_photos_are_learnt_and_told_on_the_command_line(ex, photos, tmp_path):
    options = ("--model", TINY.name, "--epochs", 8, "--batch-size", 4, "--lr", 5e-3, "--output", tmp_path, "--seed", 1)
    out = run(ex.finetune_photos, photos, *options, "--ema", 0.5)
    assert "2 classes, 12 images for training, 2 for validation" in out
    assert "warning: no --weights: training starts from random ones" in out
    assert len(re.findall(r"warning: skipped: image: .*red/broken\.jpg", out.replace("\n", ""))) == 1
    assert (tmp_path / "labels.txt").read_text() == "blue\nred\n"
    assert "best accuracy 100.00%" in out
    command = next(line for line in out.splitlines() if line.startswith("tvm-na run"))
    words = command.replace("IMAGE", str(photos / "blue" / "1.png")).split()[1:]
    said = invoke(*words, "--backend", "reference", "--top", 1).output
    assert "blue" in said.splitlines()[-2]


@pytest.mark.parametrize("steps", [2, 3], ids=["between epochs", "in an epoch"])
def test_interrupted_photos_end_with_the_bits_of_those_that_were_not(ex, photos, tmp_path, monkeypatch, steps):
    finetune(ex, photos, tmp_path / "whole", ema=0.9)
    with monkeypatch.context() as patch:
        interrupt_after(steps, ex, patch)
        assert finetune(ex, photos, tmp_path / "parts", ema=0.9).ended == "interrupted"
    finetune(ex, photos, tmp_path / "parts", ema=0.9)
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    assert_same(*(load_file(tmp_path / name / "best.safetensors") for name in ("parts", "whole")))


@pytest.mark.parametrize("machine", [{"checkpoint_activations": True}, {"workers": 2}], ids=str)
def test_what_the_result_does_not_follow_from(ex, photos, tmp_path, machine):
    finetune(ex, photos, tmp_path / "plain", epochs=1)
    finetune(ex, photos, tmp_path / "other", machine, epochs=1)
    assert_same(state_of(tmp_path / "plain")[0], state_of(tmp_path / "other")[0])


def test_a_frozen_backbone_stays_as_it_is(ex, photos, tmp_path):
    weights = tmp_path / "nat.pth"
    torch.save(create_model(TINY.name).state_dict(), weights)
    result = finetune(ex, photos, tmp_path, weights=weights, freeze_backbone=True)
    before, after = torch.load(weights), load_file(result.weights)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_mixed_precision_trains_float32_weights(ex, photos, tmp_path):
    result = finetune(ex, photos, tmp_path, epochs=1, amp=True)
    weights = load_file(result.weights)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_photos_for_validation_of_their_own(ex, photos, tmp_path):
    example = ex.finetune_photos
    _, training, validation = example.data_of(photos, photos, example.Settings(TINY.name), 0)
    assert len(training.photos) == len(validation.photos) == 14
    shutil.copytree(photos / "red", tmp_path / "green")
    shutil.copytree(photos / "red", tmp_path / "red")
    with pytest.raises(ValueError, match="required folders of the classes blue, red, got 'green'"):
        example.data_of(photos, tmp_path, example.Settings(TINY.name), 0)


def test_a_split_has_every_photo_once_and_every_class_twice(ex):
    files = [
        ex.photos.Photo(Path(f"{label}/{n}.jpg"), label) for label, count in ((0, 2), (1, 10)) for n in range(count)
    ]
    training, validation = ex.photos.split(files, 0.3, seed=0)
    assert sorted((*training, *validation), key=files.index) == files
    assert [[p.label for p in part].count(0) for part in (training, validation)] == [1, 1]
    assert [p.label for p in validation].count(1) == 3
    assert ex.photos.split(files, 0.3, seed=0)[1] == validation != ex.photos.split(files, 0.3, seed=1)[1]


def test_errors_of_the_example_on_photos(ex, photos, tmp_path):
    example, output = ex.finetune_photos, ("--output", tmp_path / "out")
    model = ("--model", TINY.name)
    assert "photos: required an existing folder" in run(example, tmp_path / "none", *output, code=2)
    assert "photos: required a folder per class, two at least, got 0" in run(example, photos / "blue" / "more", code=2)
    (tmp_path / "in" / "a").mkdir(parents=True)
    shutil.copytree(photos / "red", tmp_path / "in" / "b")
    assert "required images of every class, got none in" in run(example, tmp_path / "in", *model, *output, code=2)
    shutil.copy(photos / "blue" / "1.png", tmp_path / "in" / "a")
    assert "required 2 images of a class at least, or --val" in run(example, tmp_path / "in", *model, *output, code=2)
    assert "val-share: required a share" in run(example, photos, *model, *output, "--val-share", 1, code=2)
    assert "name: required one of" in run(example, photos, "--model", "resnet", *output, code=2)
    assert "device: required one" in run(example, photos, *model, *output, "--device", "abacus", code=2)
    missing = run(example, photos, *model, *output, "--weights", tmp_path / "none.pth", code=2)
    assert "required an existing file" in missing
    assert not (tmp_path / "out").exists()


def test_crops_lie_inside(ex):
    image = Image.new("RGB", (90, 10), "white")
    for number in range(50):
        crop = ex.photos.random_crop(image, 32, ex.guards.drawing(number))
        assert crop.size == (32, 32) and crop.getextrema() == ((255, 255),) * 3
