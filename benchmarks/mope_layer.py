"""Time and memory of a MoPE layer's forward and backward beside loops over experts and PEFT's LoRA.

All have the same frozen base layer and get the same input, which asks for a gradient as in the middle of a model. The
loops are the usual ways to write such a layer. Two run every expert on every token, and add each weighted output at
once or stack all of them first. The third runs every expert on its own tokens. PEFT's LoRA has the rank of all experts
together. The frozen base layer alone is what no adapter can be faster than.

Before anything is timed, outputs and gradients in float64 are checked to equal the loop's. Rounds are interleaved: each
runs everything once, in an order of its own, because what ran before affects caches. Ratios are medians over rounds of
the ratio within one. Memory is what autograd keeps for the backward pass, with the input and without model weights.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from statistics import median

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measuring import clock, in_turn, ratio
from src import cli
from src.core.errors import UserError
from src.lora.moe_layer import MoELoRALinear

SHAPES = ("1x4096x256", "1x28672x64->256")
MOPE = "this layer"


class Loop(nn.Module):
    """The formula of MoELoRALinear with every expert on every token; it shares the layer's parameters."""

    def __init__(self, layer: MoELoRALinear) -> None:
        super().__init__()
        self.layer = layer

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return routing weights and indices of each token's experts, (…, K) both."""
        router = self.layer.gate
        top_logits, selected = F.linear(x, router.weight, router.bias).topk(router.top_k, dim=-1)
        return top_logits.softmax(dim=-1), selected

    def expert(self, number: int, x: Tensor) -> Tensor:
        return self.layer.scale * F.linear(F.linear(x, self.layer.lora_A[number]), self.layer.lora_B[number])

    def forward(self, x: Tensor) -> Tensor:
        weights, selected = self.route(x)
        out = self.layer.base_layer(x)
        for number in range(self.layer.num_experts):
            weight = torch.where(selected == number, weights, 0).sum(dim=-1, keepdim=True)
            out = out + weight * self.expert(number, x)
        return out


class StackedLoop(Loop):
    """The same with all outputs stacked (…, E, O), then weighted and summed."""

    def forward(self, x: Tensor) -> Tensor:
        weights, selected = self.route(x)
        routing = weights.new_zeros(*x.shape[:-1], self.layer.num_experts).scatter(-1, selected, weights)
        outputs = torch.stack([self.expert(number, x) for number in range(self.layer.num_experts)], dim=-2)
        return self.layer.base_layer(x) + (routing.unsqueeze(-1) * outputs).sum(dim=-2)


class SparseLoop(Loop):
    """The same with every expert on the tokens that selected it."""

    def forward(self, x: Tensor) -> Tensor:
        weights, selected = self.route(x)
        rows = x.flatten(0, -2)
        out = self.layer.base_layer(x).flatten(0, -2)
        for number in range(self.layer.num_experts):
            token, rank = (selected.flatten(0, -2) == number).nonzero(as_tuple=True)
            part = weights.flatten(0, -2)[token, rank].unsqueeze(-1) * self.expert(number, rows[token])
            out = out.index_add(0, token, part)
        return out.unflatten(0, x.shape[:-1])


LOOPS: dict[str, type[Loop]] = {
    "loop": Loop,
    "loop, outputs stacked": StackedLoop,
    "loop, chosen tokens": SparseLoop,
}


def parse_shape(text: str) -> tuple[list[int], int]:
    """``1x4096x256`` → ([1, 4096, 256], 256), ``1x28672x64->256`` → ([1, 28672, 64], 256): input, output features."""
    sizes, _, out = text.partition("->")
    try:
        shape = [int(size) for size in sizes.split("x")]
        return shape, int(out or shape[-1])
    except ValueError:
        raise UserError(f"--shapes: {text} is not like 1x4096x256 or 1x28672x64->256", code="benchmark.shape") from None


def build(features: int, out: int, arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """Return the modules to compare by name, with experts far from zero; only PEFT's computes something else."""
    torch.manual_seed(0)
    base = nn.Linear(features, out).requires_grad_(False)
    layer = MoELoRALinear(base, arguments.experts, arguments.rank, arguments.top_k)
    nn.init.normal_(layer.lora_B, std=0.1)
    nn.init.normal_(layer.gate.weight, std=features**-0.5)
    config = LoraConfig(r=arguments.experts * arguments.rank, lora_alpha=8, target_modules=["0"])
    lora = get_peft_model(nn.Sequential(base), config)
    return {
        **{name: loop(layer) for name, loop in LOOPS.items()},
        "PEFT's LoRA": lora,
        MOPE: layer,
        "base layer alone": base,
    }


def forward_backward(module: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients of input and adapter."""
    out = module(x)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def differences(modules: dict[str, nn.Module], x: Tensor, grad: Tensor) -> tuple[float, float]:
    """Return the largest differences of outputs and gradients from the loop's, relative to each tensor's maximum."""
    expected = forward_backward(modules["loop"], x, grad)
    found = [forward_backward(modules[name], x, grad) for name in (*LOOPS, MOPE)]
    errors = [
        [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(tensors, expected, strict=True)]
        for tensors in found
    ]
    return max(row[0] for row in errors), max(max(row[1:]) for row in errors)


def check_equal(modules: dict[str, nn.Module], x: Tensor, grad: Tensor, tolerance: float) -> None:
    """Raise UserError unless results equal the loop's in float64, where rounding hides no mistake."""
    wide = {name: copy.deepcopy(module).double() for name, module in modules.items()}
    worst = max(differences(wide, x.detach().double().requires_grad_(), grad.double()))
    if worst > tolerance:
        raise UserError(
            f"in float64 results differ from the loop's by {worst:.1e} of the largest number", code="benchmark.unequal"
        )


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Return the bytes of distinct storages that autograd keeps for the backward pass, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    sizes: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # so that no address is reused
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(sizes.values())


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.experts} experts of rank {arguments.rank}, top {arguments.top_k}, {arguments.threads} threads\n")
    print("| input | layer | ms, forward and backward | to this layer | kept for backward, MB | to this layer |")
    print("|---|---|--:|--:|--:|--:|")
    errors = []
    for text in arguments.shapes:
        shape, out = parse_shape(text)
        modules = build(shape[-1], out, arguments)
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], out)
        check_equal(modules, x, grad, arguments.tolerance)
        errors.append(differences(modules, x, grad))
        variants = {name: partial(forward_backward, module, x, grad) for name, module in modules.items()}
        seconds = in_turn(variants, arguments.rounds, clock(arguments.threads))
        kept = {name: kept_bytes(module, x) for name, module in modules.items()}
        for name in modules:
            row = (f"{1e3 * median(seconds[name]):.1f}", f"{ratio(seconds[name], seconds[MOPE]):.2f}")
            memory = (f"{kept[name] / 2**20:.1f}", f"{kept[name] / kept[MOPE]:.1f}")
            print(f"| {text} | {name} | {' | '.join(row + memory)} |", flush=True)
    outputs, gradients = (max(values) for values in zip(*errors, strict=True))
    print(
        f"\nfrom the loop, relative to the largest number: outputs {outputs:.1e}, gradients {gradients:.1e} (float32)"
    )


if __name__ == "__main__":
    parser = cli.parser(__doc__.splitlines()[0], "python -m benchmarks.mope_layer --threads 2")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="SHAPE", help=f"default: {SHAPES}")
    parser.add_argument("--experts", type=int, default=10, help="default: 10")
    parser.add_argument("--rank", type=int, default=4, help="of each expert (default: 4)")
    parser.add_argument("--top-k", type=int, default=2, help="experts per token (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="how far results may differ (default: 1e-6)")
    cli.run(main, parser)
