"""tvm_na.compat.natten under the code of its users: every client is unmodified, or has one import changed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import relative_error, run_python
from tests.ops.gradients import assert_close
from tvm_na import functional
from tvm_na.compat import natten
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference

CLIENTS = Path(__file__).parent / "clients"
Client = Callable[..., ModuleType]


@pytest.fixture
def client() -> Iterator[Client]:
    """Imports a client after install(version)."""

    def imported(name: str, version: str | None = None) -> ModuleType:
        natten.install(version)
        return importlib.import_module(f"tests.compat.clients.{name}")

    yield imported
    natten.uninstall()
    for name in [name for name in sys.modules if name.startswith("tests.compat.clients.")]:
        del sys.modules[name]


def by_reference(
    query: Tensor, key: Tensor, value: Tensor, k: Any, dilation: int = 1, rpb: Tensor | None = None, **others: Any
) -> Tensor:
    """Attention of tensors with heads last by the reference, in their dtype."""
    _, *spatial, heads, head_dim = query.shape
    others |= {"dilation": dilation, "bias": rpb is not None, "dtype": "float64"}
    problem = NAProblem.make(spatial, k, heads, head_dim, **others)
    return reference.neighborhood_attention(problem, query, key, value, head_dim**-0.5, rpb)[0]


def attention_of(module: Any, x: Tensor, k: Any, dilation: int = 1, **others: Any) -> Tensor:
    """What a module of NATTEN computes, from its parameters: qkv, rpb, proj. Small maps are padded."""
    sizes = x.shape[1:-1]
    kernel = k if isinstance(k, tuple) else (k,) * len(sizes)
    pads = [p for n, m in zip(reversed(sizes), reversed(kernel), strict=True) for p in (0, max(0, m * dilation - n))]
    qkv = module.qkv(F.pad(x, [0, 0, *pads])).unflatten(-1, (3, module.num_heads, -1)).unbind(-3)
    out = by_reference(*qkv, k, dilation, module.rpb, **others)
    for axis, n in enumerate(sizes, start=1):
        out = out.narrow(axis, 0, n)
    return module.proj(out.flatten(-2))


def gradients_of(out: Tensor, tensors: Any) -> list[Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return list(torch.autograd.grad((out * weights).sum(), tensors))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("size", [(9, 7), (5, 7)], ids=["odd", "small"])
@pytest.mark.parametrize("version", [None, "0.14.6", "0.17.5"])
def test_a_layer_of_nat(client: Client, version: str | None, size: tuple[int, int]) -> None:
    layer = client("nat_layer", version).NATLayer(8, 2, kernel_size=3, dilation=2).double()
    nn.init.normal_(layer.attn.rpb)
    x = draw(2, *size, 8)
    out = layer(x)
    y = x + layer.gamma1 * attention_of(layer.attn, layer.norm1(x), 3, 2)
    wanted = y + layer.gamma2 * layer.mlp(layer.norm2(y))
    tensors = [x, *layer.parameters()]
    assert_close([out, *gradients_of(out, tensors)], [wanted, *gradients_of(wanted, tensors)])


def test_a_layer_of_nat_has_the_names_of_its_checkpoints(client: Client) -> None:
    names = {name for name in client("nat_layer").NATLayer(8, 2).state_dict() if name.startswith("attn.")}
    assert names == {f"attn.{name}" for name in ("qkv.weight", "qkv.bias", "rpb", "proj.weight", "proj.bias")}


def test_dropout_of_weights_drops_weights_in_training_only(client: Client) -> None:
    layer = client("nat_layer").NATLayer(8, 2, kernel_size=3, attn_drop=0.5).double()
    x = draw(1, 6, 5, 8)
    assert relative_error(layer.eval().attn(x), attention_of(layer.attn, x, 3)) <= 1e-13
    layer.train()
    query, key, value = layer.attn.qkv(x).unflatten(-1, (3, 2, 4)).unbind(-3)
    scores = natten.functional.na2d_qk(*(t.movedim(-2, 1) for t in (query, key)), 3) * layer.attn.scale
    scores = scores + natten.functional.na2d_qk(
        *(torch.zeros_like(t).movedim(-2, 1) for t in (query, key)), 3, rpb=layer.attn.rpb
    )
    torch.manual_seed(3)
    out = layer.attn(x)
    torch.manual_seed(3)
    kept = F.dropout(scores.softmax(-1).movedim(1, -2).contiguous(), 0.5)
    dropped = natten.functional.na2d_av(kept.movedim(-2, 1), value.movedim(-2, 1), 3).movedim(1, -2)
    assert relative_error(out, layer.attn.proj(dropped.flatten(-2))) <= 1e-13
    assert relative_error(out, layer.eval().attn(x)) > 1e-2


def test_a_layer_that_says_nothing_of_its_bias_needs_a_release(client: Client) -> None:
    attention = client("nat_layer_first").attention
    with pytest.raises(
        ValueError, match="rel_pos_bias: required .*0.17 as rel_pos_bias=False, 0.14.5 as rel_pos_bias=True"
    ):
        attention(8, 2, 3, 1)
    for version, has_bias in (("0.14.1", True), ("0.15.1", True), ("0.17.5", False)):
        natten.install(version)
        assert (attention(8, 2, 3, 1).rpb is not None) is has_bias


def test_attention_of_a_model_library(client: Client) -> None:
    module = client("dinat_attention")
    assert module.natten_version() == natten.__version__ == "0.21.6"
    attention = module.DinatSelfAttention(8, 2, 3, 2).double()
    x = draw(2, 9, 7, 8)
    out, weights = attention(x)
    assert weights.shape == (2, 2, 9, 7, 9)
    heads = [part(x).unflatten(-1, (2, 4)) for part in (attention.query, attention.key, attention.value)]
    wanted = by_reference(*heads, 3, 2, attention.rpb).flatten(-2)
    # The key's bias moves all scores of a query alike: its gradient is zero.
    tensors = [x, *(p for name, p in attention.named_parameters() if name != "key.bias")]
    assert_close([out, *gradients_of(out, tensors)], [wanted, *gradients_of(wanted, tensors)])


@pytest.mark.parametrize("fused", [True, False])
def test_attention_of_a_diffusion_transformer(client: Client, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    module = client("hourglass_attention")
    monkeypatch.setattr(natten, "has_fused_na", lambda: fused)
    qkv = draw(2, 9, 7, 24)
    out = module.neighborhood_attention(qkv, 2, 3, 4**-0.5)
    wanted = by_reference(*qkv.unflatten(-1, (3, 2, 4)).unbind(-3), 3).flatten(-2)
    assert_close([out, *gradients_of(out, [qkv])], [wanted, *gradients_of(wanted, [qkv])])


def test_heads_with_dilations_of_their_own(client: Client) -> None:
    query, key, value = (torch.randn(1, 4, 9, 7, 4, dtype=torch.float64) for _ in range(3))
    rpbs = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    out = client("dilated_heads").attention(query / 2, key, value, rpbs, 3, (1, 2))
    halves = zip(*(t.movedim(1, -2).chunk(2, dim=-2) for t in (query, key, value)), rpbs, (1, 2), strict=True)
    wanted = torch.cat([by_reference(q, k, v, 3, d, rpb) for q, k, v, rpb, d in halves], dim=-2)
    assert relative_error(out.movedim(1, -2), wanted) <= 1e-13


def test_a_block_of_0_21_runs_with_one_import_changed() -> None:
    source = (CLIENTS / "video_block.py").read_text(encoding="utf-8")
    assert source.count("import natten") == 1
    module = ModuleType("video_block")
    exec(source.replace("import natten", "from tvm_na.compat import natten"), module.__dict__)
    kernel, stride = (2, 3, 3), (1, 2, 1)
    block = module.VideoBlock(8, 2, kernel, stride).double()
    x, text = draw(1, 3, 4, 5, 8), draw(1, 6, 8)
    out = block(x, text)

    y = x + attention_of(block.attn, x, kernel, stride=stride, is_causal=(True, False, False))
    query, key, value = block.qkv(y).unflatten(-1, (3, 2, 4)).unbind(-3)
    extra = block.text(text).unflatten(-1, (2, 2, 4)).unbind(-3)
    both = functional.na3d(query, key, value, kernel, 1, 1, False, None, *extra, backend="reference")
    wanted = y + both.flatten(-2)
    tensors = [x, text, *block.parameters()]
    assert_close([out, *gradients_of(out, tensors)], [wanted, *gradients_of(wanted, tensors)])


TRANSFORMERS = """
from tvm_na.compat import natten
natten.install()
import torch
from transformers import DinatConfig, DinatForImageClassification
from transformers.models.dinat import modeling_dinat
from transformers.utils import is_natten_available
from tvm_na.models import NAT
from tvm_na.models.checkpoint_hf import from_hf

assert is_natten_available() and modeling_dinat.natten2dqkrpb is natten.functional.natten2dqkrpb
qkrpb, av = natten.functional.natten2dqkrpb, natten.functional.natten2dav
# Releases of transformers, 5.23 among them, pass [batch, width, height, heads, head_dim], which every natten refuses.
def first(t, heads):
    return t if t.shape[1] == heads else t.permute(0, 3, 2, 1, 4)
modeling_dinat.natten2dqkrpb = lambda q, k, rpb, *numbers: qkrpb(first(q, len(rpb)), first(k, len(rpb)), rpb, *numbers)
modeling_dinat.natten2dav = lambda attn, value, *numbers: av(attn, first(value, attn.shape[1]), *numbers)

sizes = dict(embed_dim=16, depths=[1, 1], num_heads=[2, 4], dilations=[[1], [2]], kernel_size=3, mlp_ratio=2.0)
torch.manual_seed(0)
theirs = DinatForImageClassification(DinatConfig(num_labels=5, **sizes)).double().eval()
for name, parameter in theirs.named_parameters():
    torch.nn.init.normal_(parameter, std=1.0 if name.endswith("rpb") else 0.2)
ours = NAT(num_classes=5, backend="reference", **sizes).double().eval()
ours.load_state_dict(from_hf(theirs.state_dict()))
x = torch.randn(1, 3, 28, 36, dtype=torch.float64)
with torch.no_grad():
    a, b = theirs(x).logits, ours(x)
print(((a - b).abs().max() / b.abs().max()).item())
"""


@pytest.mark.slow
def test_dinat_of_transformers_gives_the_logits_of_ours() -> None:
    """In a process of its own: transformers asks for natten once."""
    pytest.importorskip("transformers", reason="needs transformers")
    assert float(run_python(TRANSFORMERS)) <= 1e-11  # two stages, each with its rounding
