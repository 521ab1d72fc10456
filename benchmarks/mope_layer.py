"""Time and memory of a MoPE layer's forward and backward beside the usual loop over experts and beside PEFT's LoRA.

All have the same frozen base layer and get the same input, which asks for a gradient as in the middle of a model. The
loops are the usual ways to write such a layer: every expert on every token, its weighed output added at once or all
outputs stacked and then weighed, or every expert on its own tokens. PEFT's LoRA has the rank of all experts together;
the frozen base layer alone is what no adapter can be faster than. Before anything is timed, outputs and gradients in
float64 are checked to equal the loop's. Rounds are interleaved: each runs everything once, in an order of its own, as
what ran before leaves its traces in memory; ratios are medians over rounds of the ratio within one. Memory is what
autograd keeps for the backward pass, the input with it, model weights without.
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
    """The formula of MoELoRALinear, every expert on every token; it shares the layer's parameters."""

    def __init__(self, layer: MoELoRALinear) -> None:
        super().__init__()
        self.layer = layer

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights and numbers of each token's experts, (…, K) both."""
        gate = self.layer.gate
        top, chosen = F.linear(x, gate.weight, gate.bias).topk(gate.top_k, dim=-1)
        return top.softmax(dim=-1), chosen

    def expert(self, number: int, x: Tensor) -> Tensor:
        return self.layer.scale * F.linear(F.linear(x, self.layer.lora_A[number]), self.layer.lora_B[number])

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        out = self.layer.base_layer(x)
        for number in range(self.layer.num_experts):
            weight = torch.where(chosen == number, weights, 0).sum(dim=-1, keepdim=True)
            out = out + weight * self.expert(number, x)
        return out


class StackedLoop(Loop):
    """The same, all outputs stacked (…, E, O) and then weighed and summed."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        gates = weights.new_zeros(*x.shape[:-1], self.layer.num_experts).scatter(-1, chosen, weights)
        outputs = torch.stack([self.expert(number, x) for number in range(self.layer.num_experts)], dim=-2)
        return self.layer.base_layer(x) + (gates.unsqueeze(-1) * outputs).sum(dim=-2)


class SparseLoop(Loop):
    """The same, every expert on the tokens that chose it."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        rows = x.flatten(0, -2)
        out = self.layer.base_layer(x).flatten(0, -2)
        for number in range(self.layer.num_experts):
            row, place = (chosen.flatten(0, -2) == number).nonzero(as_tuple=True)
            part = weights.flatten(0, -2)[row, place].unsqueeze(-1) * self.expert(number, rows[row])
            out = out.index_add(0, row, part)
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
        raise UserError(f"--shapes: {text} is not like 1x4096x256 or 1x28672x64->256") from None


def build(features: int, out: int, arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """The modules to compare by name, with experts that are far from zero; only PEFT's computes something else."""
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
    """Output and gradients of input and adapter; the gradients are cleared."""
    out = module(x)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def differences(modules: dict[str, nn.Module], x: Tensor, grad: Tensor) -> tuple[float, float]:
    """How far outputs and gradients are from the loop's, relative to the largest number of each tensor, at most."""
    expected = forward_backward(modules["loop"], x, grad)
    found = [forward_backward(modules[name], x, grad) for name in (*LOOPS, MOPE)]
    far = [
        [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(tensors, expected, strict=True)]
        for tensors in found
    ]
    return max(row[0] for row in far), max(max(row[1:]) for row in far)


def check_equal(modules: dict[str, nn.Module], x: Tensor, grad: Tensor, tolerance: float) -> None:
    """Raise unless results are the loop's in float64, where rounding hides no mistake."""
    wide = {name: copy.deepcopy(module).double() for name, module in modules.items()}
    worst = max(differences(wide, x.detach().double().requires_grad_(), grad.double()))
    if worst > tolerance:
        raise UserError(f"in float64 results differ from the loop's by {worst:.1e} of the largest number")


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass, without those of parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    sizes: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # so that no address is used twice
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
    far = []
    for text in arguments.shapes:
        shape, out = parse_shape(text)
        modules = build(shape[-1], out, arguments)
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], out)
        check_equal(modules, x, grad, arguments.tolerance)
        far.append(differences(modules, x, grad))
        variants = {name: partial(forward_backward, module, x, grad) for name, module in modules.items()}
        seconds = in_turn(variants, arguments.rounds, clock(arguments.threads))
        kept = {name: kept_bytes(module, x) for name, module in modules.items()}
        for name in modules:
            row = (f"{1e3 * median(seconds[name]):.1f}", f"{ratio(seconds[name], seconds[MOPE]):.2f}")
            memory = (f"{kept[name] / 2**20:.1f}", f"{kept[name] / kept[MOPE]:.1f}")
            print(f"| {text} | {name} | {' | '.join(row + memory)} |", flush=True)
    outputs, gradients = (max(values) for values in zip(*far, strict=True))
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
