"""Specs as differentiable functions of PyTorch tensors.

    mixer = Recurrence(gdr.Context(), "specs/gdn2.gdr", {"K": 64, "V": 64}, torch.bfloat16, "cuda")
    o = mixer(q=q, k=k, v=v, g=g, b=b, w=w)      # [B,T,H,V]; o.backward() runs the backward kernel

Kernels are queued on PyTorch's current stream, their workspaces and what a forward pass saves for
the backward pass come from its allocator, and gradients are computed for those tensors alone that
ask for one.
"""
import torch

import gdr

DTYPE = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16",
         torch.int32: "i32", torch.int64: "i64"}


def describe(t):
    return gdr.Tensor(t.data_ptr(), tuple(t.shape), DTYPE[t.dtype], t.device.type)


def _memory(size, device):
    """An address and a size, and what owns them; None, None for nothing."""
    if not size:
        return None, None
    owner = torch.empty(size, dtype=torch.uint8, device=device)
    return (owner.data_ptr(), size), owner


def _launch(kernel, call, args, device, saved):
    """Runs `call`, kernel.forward or .backward, on described tensors by name."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    # Given back when this returns: PyTorch hands it out again behind the kernels, on their stream.
    workspace, _owner = _memory(kernel.workspace_size(args, saved=saved), device)
    call(args, workspace=workspace, saved=saved, stream=stream)


def _describe_all(tensors):
    return {name: describe(t) for name, t in tensors.items()}


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recurrence, will_differentiate, *given):
        kernel, device = recurrence.forward_kernel, given[0].device
        tensors = {name: t.contiguous() for name, t in zip(recurrence.inputs, given)}
        batch, tokens, heads = 0, 0, 0
        for t in tensors.values():
            if t.dim() >= 3:
                batch, tokens, heads = t.shape[0], t.shape[1], max(heads, t.shape[2])
        outputs = {p.name: torch.empty((batch, tokens, heads, *p.shape), dtype=recurrence.dtype,
                                       device=device) for p in recurrence.outputs}
        args = _describe_all({**tensors, **outputs})
        saved, ctx.saved_owner = _memory(kernel.saved_size(args) if will_differentiate else 0,
                                         device)
        ctx.saved = kernel.saved(*saved) if saved else None
        _launch(kernel, kernel.forward, args, device, ctx.saved)
        ctx.recurrence = recurrence
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors.values())
        return tuple(outputs.values())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *upstream):
        recurrence, kernel = ctx.recurrence, ctx.recurrence.backward_kernel
        tensors = dict(zip(recurrence.inputs, ctx.saved_tensors))
        # The first two answers are those of `recurrence` and `will_differentiate`.
        wanted = [name for name, needed in zip(recurrence.inputs, ctx.needs_input_grad[2:])
                  if needed]
        gradients = {name: torch.empty_like(tensors[name]) for name in wanted}
        given = {recurrence.upstream[p.name]: d.contiguous()
                 for p, d in zip(recurrence.outputs, upstream) if d is not None}
        args = _describe_all({
            **tensors, **given, **{recurrence.gradient[name]: d for name, d in gradients.items()}})
        _launch(kernel, kernel.backward, args, next(iter(tensors.values())).device, ctx.saved)
        return (None, None, *(gradients.get(name) for name in recurrence.inputs))


class Recurrence:
    """A spec compiled for these sizes, this type and this device, forward and backward. `save`: what a
    forward pass on a GPU keeps for the backward pass: "nothing", "states" or "all"."""

    def __init__(self, context, spec, dims, dtype, device, save="states"):
        device = torch.device(device)
        if device.type == "cuda":
            torch.cuda.init()
            torch.cuda.current_stream(device).synchronize()  # PyTorch's context is there first
        options = {"dims": dims, "dtype": DTYPE[dtype],
                   "target": "cuda" if device.type == "cuda" else "host"}
        self.dtype = dtype
        self.forward_kernel = context.compile_file(spec, save=save, **options)
        self.backward_kernel = context.compile_file(spec, pass_="backward", **options)
        ports = self.backward_kernel.ports
        self.inputs = self.forward_kernel.names("input", "param")
        self.outputs = [p for p in self.forward_kernel.ports if p.kind == "output"]
        self.upstream = {p.of: p.name for p in ports if p.kind == "upstream"}
        self.gradient = {p.of: p.name for p in ports if p.kind in ("gradient", "param_gradient")}

    def __call__(self, **tensors):
        if set(tensors) != set(self.inputs):
            raise TypeError(f"{self.forward_kernel.facts.name} takes {', '.join(self.inputs)}, "
                            f"not {', '.join(tensors)}")
        will_differentiate = torch.is_grad_enabled() and any(
            t.requires_grad for t in tensors.values())
        out = _Function.apply(self, will_differentiate, *(tensors[name] for name in self.inputs))
        return out[0] if len(out) == 1 else out
