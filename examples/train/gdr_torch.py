"""Specs as differentiable functions of PyTorch tensors.

    mixer = Recurrence(gdr.Context(), "specs/gdn2.gdr", {"K": 64, "V": 64}, torch.bfloat16, "cuda")
    o = mixer(q=q, k=k, v=v, g=g, b=b, w=w)      # [B,T,H,V]; o.backward() runs the backward kernel

Kernels are queued on PyTorch's current stream, their workspaces come from its allocator, and
gradients are computed for those tensors alone that ask for one.
"""
import torch

import gdr

DTYPE = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16",
         torch.int32: "i32", torch.int64: "i64"}


def describe(t):
    return gdr.Tensor(t.data_ptr(), tuple(t.shape), DTYPE[t.dtype], t.device.type)


def _launch(kernel, call, tensors):
    """Runs `call`, kernel.forward or .backward, on tensors by name."""
    device = next(iter(tensors.values())).device
    args = {name: describe(t) for name, t in tensors.items()}
    on_gpu = device.type == "cuda"
    workspace = torch.empty(kernel.workspace_size(args), dtype=torch.uint8, device=device)
    call(args, workspace=(workspace.data_ptr(), workspace.numel()) if workspace.numel() else None,
         stream=torch.cuda.current_stream(device).cuda_stream if on_gpu else None)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recurrence, *given):
        tensors = {name: t.contiguous() for name, t in zip(recurrence.inputs, given)}
        batch, tokens, heads = 0, 0, 0
        for t in tensors.values():
            if t.dim() >= 3:
                batch, tokens, heads = t.shape[0], t.shape[1], max(heads, t.shape[2])
        outputs = {p.name: torch.empty((batch, tokens, heads, *p.shape), dtype=recurrence.dtype,
                                       device=given[0].device) for p in recurrence.outputs}
        kernel = recurrence.forward_kernel
        _launch(kernel, kernel.forward, {**tensors, **outputs})
        ctx.recurrence = recurrence
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors.values())
        return tuple(outputs.values())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *upstream):
        recurrence = ctx.recurrence
        tensors = dict(zip(recurrence.inputs, ctx.saved_tensors))
        # The first needs_input_grad is that of `recurrence`.
        wanted = [name for name, needed in zip(recurrence.inputs, ctx.needs_input_grad[1:])
                  if needed]
        gradients = {name: torch.empty_like(tensors[name]) for name in wanted}
        given = {recurrence.upstream[p.name]: d.contiguous()
                 for p, d in zip(recurrence.outputs, upstream) if d is not None}
        kernel = recurrence.backward_kernel
        _launch(kernel, kernel.backward, {
            **tensors, **given, **{recurrence.gradient[name]: d for name, d in gradients.items()}})
        return (None, *(gradients.get(name) for name in recurrence.inputs))


class Recurrence:
    """A spec compiled for these sizes, this type and this device, forward and backward."""

    def __init__(self, context, spec, dims, dtype, device):
        device = torch.device(device)
        if device.type == "cuda":
            torch.cuda.init()
            torch.cuda.current_stream(device).synchronize()  # PyTorch's context is there first
        options = {"dims": dims, "dtype": DTYPE[dtype],
                   "target": "cuda" if device.type == "cuda" else "host"}
        self.dtype = dtype
        self.forward_kernel = context.compile_file(spec, **options)
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
        out = _Function.apply(self, *(tensors[name] for name in self.inputs))
        return out[0] if len(out) == 1 else out
