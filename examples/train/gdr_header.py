"""What gdr.h declares, as ctypes: structs, enums and functions, read from the header itself, so
that the binding cannot differ from it.

    declare(header text) -> Header with
        .struct["gdr_launch"]      a ctypes.Structure, its .enum_of {field: enum}
        .enum["gdr_dtype"]         {"f32": 0, "bf16": 1, ...}: without what all have in front
        .function["gdr_forward"]   (result, arguments)
        .callback["gdr_diag_fn"]   a ctypes function type

Understands the C of that one header: typedefs of enums, structs and function pointers, prototypes
marked GDR_API, and the list of status codes. Anything else in it is an error, not a guess.
"""
import ctypes
import os
import re

SCALAR = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64, "size_t": ctypes.c_size_t,
          "double": ctypes.c_double, "float": ctypes.c_float}


class Header:
    def __init__(self):
        self.enum, self.struct, self.callback, self.function = {}, {}, {}, {}

    def type(self, base, stars):
        """The ctypes type of `base` behind that many stars."""
        if base == "void":
            return (None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))[stars]
        if base == "char":
            return (ctypes.c_char, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p))[stars]
        t = SCALAR.get(base) or self.struct.get(base) or self.callback.get(base)
        if base in self.enum:
            t = ctypes.c_int
        if t is None:  # an opaque handle
            if not stars:
                raise ValueError(f"gdr.h: type {base} is not known")
            t, stars = ctypes.c_void_p, stars - 1
        for _ in range(stars):
            t = ctypes.POINTER(t)
        return t

    def variables(self, text):
        """[(name, type)] of "const gdr_tensor *S0, *S": one declaration, or one parameter."""
        text = re.sub(r"\bconst\b", " ", text).strip()
        base, rest = re.fullmatch(r"(\w+)\b(.*)", text, flags=re.S).groups()
        found = []
        for declarator in rest.split(","):
            match = re.fullmatch(r"([\s*]*)(\w*)(?:\[(\d+)\])?", declarator.strip())
            if not match:
                raise ValueError(f"gdr.h: cannot read {text!r}")
            stars, name, count = match.groups()
            t = self.type(base, stars.count("*"))
            found.append((name, t * int(count) if count else t))
        return found

    def parameters(self, text):
        if text.strip() == "void":
            return []
        return [self.variables(one)[0][1] for one in text.split(",")]


def _enumerators(body):
    values, following = {}, 0
    for item in filter(None, (item.strip() for item in body.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        following = int(value, 0) if value else following
        values[name.removeprefix("GDR_").lower()] = following
        following += 1
    common = os.path.commonprefix(list(values)).rpartition("_")
    return {name.removeprefix(common[0] + common[1]): value for name, value in values.items()}


def _structure(header, name, body):
    fields, enum_of = [], {}
    for line in filter(str.strip, body.split(";")):
        base = re.search(r"\w+", line.replace("const", "")).group()
        for field in header.variables(line):
            fields.append(field)
            if base in header.enum:
                enum_of[field[0]] = base
    return type(name, (ctypes.Structure,), {"_fields_": fields, "enum_of": enum_of})


def declare(text):
    header = Header()
    # The one enum that a macro makes.
    codes = re.findall(r"^\s*X\((\w+), \d+, \"", text, flags=re.M)
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"^#(?:.*\\\n)*.*$", "", text, flags=re.M)
    item = re.compile(
        r"typedef\s+enum\s+(?P<enum>\w+)\s*\{(?P<values>[^}]*)\}"
        r"|typedef\s+struct\s+(?P<struct>\w+)\s*\{(?P<fields>[^}]*)\}"
        r"|typedef\s+void\s*\(\*(?P<callback>\w+)\)\((?P<arguments>[^)]*)\)"
        r"|GDR_API\s+(?P<result>[^;(]*?)(?P<function>\w+)\((?P<parameters>[^)]*)\)")
    for m in item.finditer(text):
        if m["enum"]:
            body = ",".join(codes) if m["enum"] == "gdr_status" else m["values"]
            header.enum[m["enum"]] = _enumerators(body)
        elif m["struct"]:
            header.struct[m["struct"]] = _structure(header, m["struct"], m["fields"])
        elif m["callback"]:
            header.callback[m["callback"]] = ctypes.CFUNCTYPE(None,
                                                              *header.parameters(m["arguments"]))
        else:
            result = header.variables(m["result"] + " result")[0][1]
            header.function[m["function"]] = (result, header.parameters(m["parameters"]))
    if "gdr_launch" not in header.struct or "gdr_forward" not in header.function:
        raise ValueError("this is not gdr.h")
    return header
