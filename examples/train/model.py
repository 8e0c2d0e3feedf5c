"""A small language model whose mixers are recurrences compiled by gdrc.

    tokens -> embedding -> blocks of { x += mixer(norm x);  x += mlp(norm x) } -> norm -> logits

A mixer projects x to queries, keys and values, mixes each with the few tokens before it (a causal
convolution of width 4, as all three papers have it), projects x to the spec's gates, which the spec
itself brings into range, and runs the recurrence on every head. Models with different mixers have
the same number of parameters: what one spends on gates another spends on its MLPs.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

# Of each mixer its spec, and its gates: whether they are there for every channel or once a head.
MIXERS = {
    "gdn2": ("gdn2_raw", {"g": True, "b": True, "w": True}),
    "kda": ("kda_raw", {"g": True, "beta": False}),
    "gated_deltanet": ("gated_deltanet_raw", {"g": False, "beta": False}),
}
CONV_WIDTH = 4


class Norm(nn.Module):
    """Root mean square norm, in f32."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return (y * self.weight).to(x.dtype)


class ShortConv(nn.Module):
    """Each channel with those before it: y[t] = sum over i of w[i] x[t - i]."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(CONV_WIDTH, width))
        nn.init.uniform_(self.weight, -CONV_WIDTH**-0.5, CONV_WIDTH**-0.5)

    def forward(self, x):
        padded = F.pad(x, (0, 0, CONV_WIDTH - 1, 0))
        weight, tokens = self.weight.to(x.dtype), x.shape[1]
        y = sum(weight[i] * padded[:, CONV_WIDTH - 1 - i:CONV_WIDTH - 1 - i + tokens]
                for i in range(CONV_WIDTH))
        return F.silu(y)


def gate_projection(width, rank, out):
    """Through a narrow layer where the gate has many channels."""
    if out <= rank:
        return nn.Linear(width, out)
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, out))


def initial_decay(heads, shape):
    """Decays of 0.01 % to 1 % a token, evenly spread in their logarithms over the heads, or over the
    channels of all heads: at a rate exp(A_log) of 1, dt_bias is what softplus takes to them."""
    decay = torch.logspace(-4, -2, math.prod(shape)).reshape(shape)
    return {"A_log": torch.zeros(heads), "dt_bias": decay + torch.log(-torch.expm1(-decay))}


class Mixer(nn.Module):
    """`recurrence` is the spec compiled: gdr_torch.Recurrence."""

    def __init__(self, recurrence, gates, width, heads, head_dim):
        super().__init__()
        inner, rank = heads * head_dim, head_dim // 2
        self.recurrence, self.gates, self.heads, self.inner = recurrence, gates, heads, inner
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.conv = ShortConv(3 * inner)
        self.gate = nn.ModuleDict({
            name: gate_projection(width, rank, inner if by_channel else heads)
            for name, by_channel in gates.items()})
        self.param = nn.ParameterDict(
            initial_decay(heads, (heads, head_dim) if gates["g"] else (heads,)))
        self.norm = Norm(head_dim)
        self.out_gate = gate_projection(width, rank, inner)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        split = (*x.shape[:2], self.heads, -1)
        qkv = self.conv(self.qkv(x)).split(self.inner, dim=-1)
        tensors = {name: t.reshape(split) for name, t in zip("qkv", qkv)}
        for name, by_channel in self.gates.items():
            gate = self.gate[name](x)
            tensors[name] = gate.view(split) if by_channel else gate
        tensors = {name: t.to(self.recurrence.dtype) for name, t in tensors.items()}
        o = self.recurrence(**tensors, **self.param)  # [B,T,heads,head_dim]
        o = self.norm(o) * F.silu(self.out_gate(x)).view(split)
        return self.out(o.flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        a, b = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(a) * b)


class Block(nn.Module):
    def __init__(self, mixer, width, hidden):
        super().__init__()
        self.mixer, self.mlp = mixer, Mlp(width, hidden)
        self.norm1, self.norm2 = Norm(width), Norm(width)

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def parameters_of(module):
    return sum(p.numel() for p in module.parameters())


class Model(nn.Module):
    def __init__(self, mixer, recurrence, vocabulary, width, layers, heads, head_dim):
        super().__init__()

        def make(gates):
            return Mixer(recurrence, gates, width, heads, head_dim)

        # The MLP: twice the width, and what the largest mixer has more than this one.
        gates = MIXERS[mixer][1]
        largest = max(parameters_of(make(others)) for _, others in MIXERS.values())
        spare = largest - parameters_of(make(gates))
        hidden = 2 * width + round(spare / (3 * width) / 8) * 8
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(make(gates), width, hidden) for _ in range(layers))
        self.norm = Norm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:  # the sum of all blocks begins no larger than one
            block.mixer.out.weight.data *= (2 * layers)**-0.5
            block.mlp.down.weight.data *= (2 * layers)**-0.5

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def groups(self, decay):
        """For the optimiser: only the weights of linear maps decay."""
        linear = [m.weight for m in self.modules() if isinstance(m, nn.Linear)]
        known = set(map(id, linear))
        other = [p for p in self.parameters() if id(p) not in known]
        return [{"params": linear, "weight_decay": decay},
                {"params": other, "weight_decay": 0.0}]
