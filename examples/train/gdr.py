"""libgdr for Python: spec files to kernels, launched on memory that the caller owns.

    context = gdr.Context()
    kernel = context.compile_file("specs/gdn2.gdr", dims={"K": 64}, dtype="bf16", target="cuda")
    kernel.forward({"q": gdr.Tensor(address, (1, 256, 4, 64), "bf16", "cuda"), ...}, stream=stream)

One class for each handle of the C API and one method for each of its calls; options and fields have
the names that they have in gdr.h. A status that is not OK becomes an Error with the library's own
message. Needs nothing but the standard library: a tensor is an address, a shape, a type and a
device, so any framework's can be given.

GDR_LIBRARY and GDR_HEADER name libgdr.so and gdr.h where they are not in the usual places.
"""
import ctypes
import glob
import logging
import os
import weakref
from collections import namedtuple

from gdr_header import declare

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

Tensor = namedtuple("Tensor", "data shape dtype device strides", defaults=("cpu", None))
Port = namedtuple("Port", "name of kind dtype shape lo hi")
Facts = namedtuple("Facts", "name target pass_ algo K V chunk decay from_cache")


class Error(Exception):
    """What a call reported; .status is the name of its status: "EINPUT"."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def _find(variable, *places):
    """What the environment says, else the newest file at these places below ROOT."""
    if variable in os.environ:
        return os.environ[variable]
    for place in places:
        found = sorted(glob.glob(os.path.join(ROOT, place)), key=os.path.getmtime)
        if found:
            return found[-1]
    return os.path.basename(places[0])


class Library:
    """libgdr.so with the types of its functions, and what gdr.h says of enums and structs."""

    def __init__(self):
        with open(_find("GDR_HEADER", "runtime/gdr.h", "../../../include/gdr.h"),
                  encoding="utf-8") as f:
            header = declare(f.read())
        self.struct, self.enum = header.struct, header.enum
        self.callback = header.callback
        path = _find("GDR_LIBRARY", "build*/lib/libgdr.so", "build/*/lib/libgdr.so")
        self.library = ctypes.CDLL(path)
        for name, (result, parameters) in header.function.items():
            function = getattr(self.library, name, None)
            if function is None:
                raise ImportError(f"{path} is not the library of this gdr.h: it has no {name}")
            function.restype, function.argtypes = result, parameters
            setattr(self, name, function)

    def value(self, enum, name):
        """The number of "bf16" in gdr_dtype."""
        if name not in self.enum[enum]:
            raise ValueError(f"{enum} has no {name}")
        return self.enum[enum][name]

    def name(self, enum, value):
        return next(name for name, number in self.enum[enum].items() if number == value)

    def fill(self, struct, **fields):
        """A struct that begins with its own size."""
        made = self.struct[struct](size=ctypes.sizeof(self.struct[struct]))
        for name, value in fields.items():
            if not hasattr(made, name):
                raise TypeError(f"{struct} has no field {name}")
            setattr(made, name, value)
        return made


class Context:
    """Owns the cache, the CPU threads and the GPU of its kernels."""

    def __init__(self, cache_dir=None, threads=0, device=0):
        self.lib = Library()
        self._messages = []  # of the spec that is being compiled
        log = logging.getLogger("gdr")

        def on_diag(_, d):
            d = d.contents
            where = f"{d.file.decode()}:{d.line}:{d.column}: " if d.file and d.line else ""
            self._messages.append(where + d.message.decode())

        def on_log(_, severity, message):
            level = {"note": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
            log.log(level[self.lib.name("gdr_severity", severity)], "%s", message.decode())

        self._callbacks = (self.lib.callback["gdr_diag_fn"](on_diag),
                           self.lib.callback["gdr_log_fn"](on_log))  # alive as long as this is
        options = self.lib.fill("gdr_context_options", threads=threads, device=device,
                                cache_dir=None if cache_dir is None else os.fsencode(cache_dir),
                                diag=self._callbacks[0], log=self._callbacks[1])
        self.handle = ctypes.c_void_p()
        status = self.lib.gdr_context_create(options, self.handle)
        if status:
            raise Error(self._status(status), self.lib.gdr_strstatus(status).decode())
        weakref.finalize(self, _destroy, self.lib.gdr_context_destroy, self.handle,
                         self._callbacks)

    def _status(self, status):
        return self.lib.name("gdr_status", status).upper()

    def check(self, status):
        if status:
            messages, self._messages[:] = self._messages[:], []
            text = "\n".join(messages) or self.lib.gdr_last_error(self.handle).decode()
            raise Error(self._status(status), text)

    def compile_file(self, path, **options):
        """The options are the fields of gdr_compile_options: dims and types are dictionaries,
        upstream and gradients lists of names, enums texts: algo="chunk", pass_="backward"."""
        def call(options, out):
            return self.lib.gdr_compile_file(self.handle, os.fsencode(path), options, out)
        return self._compile(call, options)

    def compile_string(self, text, name="spec", **options):
        data = text.encode()
        def call(options, out):
            return self.lib.gdr_compile_string(self.handle, name.encode(), data, len(data),
                                               options, out)
        return self._compile(call, options)

    def _compile(self, call, options):
        handle = ctypes.c_void_p()
        self._messages.clear()
        self.check(call(self._options(options), handle))
        return Kernel(self, handle)

    def _options(self, given):
        lib, fields = self.lib, {}
        enum_of = lib.struct["gdr_compile_options"].enum_of
        for name, value in given.items():
            name = name.rstrip("_")  # `pass` is a word of Python's own
            if name == "dims":
                pairs = [(n.encode(), size) for n, size in value.items()]
                fields[name] = (lib.struct["gdr_dim"] * len(pairs))(*pairs)
            elif name == "types":
                pairs = [(n.encode(), lib.value("gdr_dtype", t)) for n, t in value.items()]
                fields[name] = (lib.struct["gdr_port_dtype"] * len(pairs))(*pairs)
            elif name in ("upstream", "gradients"):
                fields[name] = (ctypes.c_char_p * len(value))(*(n.encode() for n in value))
            elif name in enum_of:
                fields[name] = lib.value(enum_of[name], value)
            else:
                fields[name] = value.encode() if isinstance(value, str) else value
            if isinstance(fields[name], ctypes.Array):
                fields["n" + name] = len(value)
        return lib.fill("gdr_compile_options", **fields)


class Kernel:
    """One variant, with sizes, types, target, algorithm and pass fixed."""

    def __init__(self, context, handle):
        self.context, self.lib, self.handle = context, context.lib, handle
        weakref.finalize(self, _destroy, self.lib.gdr_kernel_destroy, handle, context)
        self.facts = self._facts()
        self.ports = [self._port(i) for i in range(self.lib.gdr_kernel_ports(handle))]

    def _facts(self):
        f = self.lib.struct["gdr_facts"]()
        self.lib.gdr_kernel_facts(self.handle, f)
        return Facts(f.name.decode(), f.target.decode(),
                     self.lib.name("gdr_pass", getattr(f, "pass")),
                     self.lib.name("gdr_algo", f.algo), f.K, f.V, f.chunk,
                     f.decay.decode(), bool(f.from_cache))

    def _port(self, index):
        p = self.lib.struct["gdr_port"]()
        self.context.check(self.lib.gdr_kernel_port(self.handle, index, p))
        return Port(p.name.decode(), p.of.decode() if p.of else None,
                    self.lib.name("gdr_port_kind", p.kind),
                    self.lib.gdr_dtype_name(p.dtype).decode(), tuple(p.shape[:p.ndim]),
                    p.lo, p.hi)

    def names(self, *kinds):
        """The names of the ports of these kinds: "input", "param", "output", ..."""
        return [p.name for p in self.ports if p.kind in kinds]

    def _tensor(self, t):
        lib, extent = self.lib, ctypes.c_int64 * max(len(t.shape), 1)
        strides = extent(*t.strides) if t.strides else None
        return lib.struct["gdr_tensor"](t.data, lib.value("gdr_device", t.device),
                                        lib.value("gdr_dtype", t.dtype), len(t.shape),
                                        extent(*t.shape), strides)

    def _launch(self, args, workspace=None, saved=None, stream=None, **states):
        """`workspace` is an address and a number of bytes, `stream` an address, `saved` what
        saved() made; `states` are the fields of gdr_launch that are tensors: S0, S, dS, ..."""
        made = [(name.encode(), self._tensor(t)) for name, t in args.items()]
        fields = {name: ctypes.pointer(self._tensor(t)) for name, t in states.items()
                  if t is not None}
        if workspace is not None:
            fields.update(workspace=workspace[0], workspace_bytes=workspace[1])
        if saved is not None:
            fields.update(saved=ctypes.pointer(saved))
        return self.lib.fill("gdr_launch", args=(self.lib.struct["gdr_arg"] * len(made))(*made),
                             nargs=len(made), stream=stream, **fields)

    def forward(self, args, **launch):
        self.context.check(self.lib.gdr_forward(self.handle, self._launch(args, **launch)))

    def backward(self, args, **launch):
        self.context.check(self.lib.gdr_backward(self.handle, self._launch(args, **launch)))

    def _size(self, function, args, launch):
        size = ctypes.c_size_t()
        self.context.check(function(self.handle, self._launch(args, **launch), size))
        return size.value

    def workspace_size(self, args, **launch):
        return self._size(self.lib.gdr_workspace_size, args, launch)

    def workspace_least(self, args, **launch):
        return self._size(self.lib.gdr_workspace_least, args, launch)

    def saved_size(self, args, **launch):
        return self._size(self.lib.gdr_saved_size, args, launch)

    def saved(self, address, size):
        """Memory for what a forward pass saves: given to it, then to the backward pass."""
        return self.lib.struct["gdr_saved"](data=address, bytes=size)


def _destroy(function, handle, _owner):
    """Called when the object is gone; `_owner` is what must outlive the handle."""
    function(handle)
