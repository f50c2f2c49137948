"""torch.nn.Module and the modules that hold others.

Parameters, buffers and submodules are kept and named as torch does; hooks run. Moving, casting and training do nothing.
A call tells `_trace` which module runs, for the names of nodes. Modules are made in microseconds: nothing is initialised.
"""

from .._dtypes import CPU
from .._tensor import Tensor
from .._trace import S
from .parameter import Buffer, Parameter


class Module:
    training = False
    call_super_init = False
    dump_patches = False
    _version = 1
    _path = None

    def __init__(self, *args, **kwargs):
        d = self.__dict__
        if "_modules" in d:
            return
        d["_parameters"] = {}
        d["_buffers"] = {}
        d["_modules"] = {}
        d["_non_persistent_buffers_set"] = set()

    # ---- attributes
    def __setattr__(self, name, x):
        d = self.__dict__
        if isinstance(x, Parameter):
            if "_parameters" not in d:
                raise AttributeError("cannot assign parameters before Module.__init__() call")
            if name not in d["_parameters"]:
                self._forget(name)
            d["_parameters"][name] = x
        elif isinstance(x, Module):
            if "_modules" not in d:
                raise AttributeError("cannot assign module before Module.__init__() call")
            if name not in d["_modules"]:
                self._forget(name)
            d["_modules"][name] = x
        elif isinstance(x, Tensor) and "_buffers" in d and (name in d["_buffers"] or isinstance(x, Buffer)):
            d["_buffers"][name] = x
            if isinstance(x, Buffer) and not x.persistent:
                d["_non_persistent_buffers_set"].add(name)
        elif x is None and "_parameters" in d and name in d["_parameters"]:
            d["_parameters"][name] = None
        elif x is None and "_modules" in d and name in d["_modules"]:
            d["_modules"][name] = None
        elif x is None and "_buffers" in d and name in d["_buffers"]:
            d["_buffers"][name] = None
        else:
            if "_modules" in d and (name in d["_modules"] or name in d["_parameters"]):
                self._forget(name)
            object.__setattr__(self, name, x)

    def _forget(self, name):
        d = self.__dict__
        d.pop(name, None)
        d["_parameters"].pop(name, None)
        d["_buffers"].pop(name, None)
        d["_modules"].pop(name, None)

    def __getattr__(self, name):
        d = self.__dict__
        for kind in ("_modules", "_parameters", "_buffers"):
            held = d.get(kind)
            if held is not None and name in held:
                return held[name]
        raise AttributeError("'%s' object has no attribute '%s'" % (type(self).__name__, name))

    def __delattr__(self, name):
        for kind in ("_modules", "_parameters", "_buffers"):
            if name in self.__dict__.get(kind, ()):
                del self.__dict__[kind][name]
                return
        object.__delattr__(self, name)

    def __dir__(self):
        return list(object.__dir__(self)) + list(self._parameters) + list(self._buffers) + list(self._modules)

    def register_parameter(self, name, param):
        self._forget(name)
        self._parameters[name] = param

    def register_buffer(self, name, tensor, persistent=True):
        self._forget(name)
        self._buffers[name] = tensor
        if persistent:
            self._non_persistent_buffers_set.discard(name)
        else:
            self._non_persistent_buffers_set.add(name)

    def register_module(self, name, module):
        self._forget(name)
        self._modules[name] = module

    add_module = register_module

    # ---- calls
    def __call__(self, *args, **kwargs):
        outer = S.path
        path = self._path
        if path is not None:
            S.path = path
        try:
            if "_hooks" in self.__dict__:
                return self._call_with_hooks(args, kwargs)
            return self.forward(*args, **kwargs)
        finally:
            S.path = outer

    _call_impl = __call__

    def _call_with_hooks(self, args, kwargs):
        before, after = self.__dict__["_hooks"]
        for hook, with_kwargs in list(before.values()):
            result = hook(self, args, kwargs) if with_kwargs else hook(self, args)
            if result is not None:
                if with_kwargs:
                    args, kwargs = result
                else:
                    args = result if isinstance(result, tuple) else (result,)
        out = self.forward(*args, **kwargs)
        for hook, with_kwargs in list(after.values()):
            result = hook(self, args, kwargs, out) if with_kwargs else hook(self, args, out)
            out = out if result is None else result
        return out

    def forward(self, *args, **kwargs):
        raise NotImplementedError('Module [%s] is missing the required "forward" function' % type(self).__name__)

    def _register(self, which, hook, with_kwargs, prepend=False):
        hooks = self.__dict__.setdefault("_hooks", ({}, {}))[which]
        handle = RemovableHandle(hooks)
        hooks[handle.id] = (hook, with_kwargs)
        return handle

    def register_forward_pre_hook(self, hook, *, prepend=False, with_kwargs=False):
        return self._register(0, hook, with_kwargs)

    def register_forward_hook(self, hook, *, prepend=False, with_kwargs=False, always_call=False):
        return self._register(1, hook, with_kwargs)

    def _no_hook(self, *args, **kwargs):
        return RemovableHandle({})

    register_backward_hook = register_full_backward_hook = register_full_backward_pre_hook = _no_hook
    register_load_state_dict_pre_hook = register_load_state_dict_post_hook = _no_hook
    _register_load_state_dict_pre_hook = _register_state_dict_hook = register_state_dict_pre_hook = _no_hook
    register_state_dict_post_hook = _no_hook

    # ---- what it holds
    def named_modules(self, memo=None, prefix="", remove_duplicate=True):
        # A stack, not generators in generators: every level would be passed for every module.
        memo = set() if memo is None else memo
        stack = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if module in memo:
                continue
            if remove_duplicate:
                memo.add(module)
            yield path, module
            lead = path + "." if path else ""
            held = [(lead + name, m) for name, m in module._modules.items() if m is not None]
            stack.extend(reversed(held))

    def modules(self):
        for _, m in self.named_modules():
            yield m

    def named_children(self):
        seen = set()
        for name, m in self._modules.items():
            if m is not None and m not in seen:
                seen.add(m)
                yield name, m

    def children(self):
        for _, m in self.named_children():
            yield m

    def _named(self, kind, prefix, recurse, remove_duplicate):
        seen = set()
        modules = self.named_modules(None, prefix, remove_duplicate) if recurse else [(prefix, self)]
        for path, m in modules:
            for name, x in getattr(m, kind).items():
                if x is None or (remove_duplicate and id(x) in seen):
                    continue
                seen.add(id(x))
                yield (path + "." if path else "") + name, x

    def named_parameters(self, prefix="", recurse=True, remove_duplicate=True):
        yield from self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse=True):
        for _, p in self.named_parameters(recurse=recurse):
            yield p

    def named_buffers(self, prefix="", recurse=True, remove_duplicate=True):
        yield from self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse=True):
        for _, b in self.named_buffers(recurse=recurse):
            yield b

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        out = {} if destination is None else destination
        for path, m in self.named_modules(None, prefix.rstrip("."), False):
            lead = path + "." if path else ""
            for name, p in m._parameters.items():
                if p is not None:
                    out[lead + name] = p
            for name, b in m._buffers.items():
                if b is not None and name not in m._non_persistent_buffers_set:
                    out[lead + name] = b
        return out

    def load_state_dict(self, state_dict, strict=True, assign=False):
        return None

    def get_submodule(self, target):
        m = self
        for name in target.split(".") if target else ():
            m = getattr(m, name)
        return m

    def set_submodule(self, target, module, strict=False):
        path, _, name = target.rpartition(".")
        setattr(self.get_submodule(path), name, module)

    def get_parameter(self, target):
        path, _, name = target.rpartition(".")
        return self.get_submodule(path)._parameters[name]

    def get_buffer(self, target):
        path, _, name = target.rpartition(".")
        return self.get_submodule(path)._buffers[name]

    def apply(self, fn):
        for m in self.children():
            m.apply(fn)
        fn(self)
        return self

    # ---- what changes nothing
    def _same(self, *args, **kwargs):
        return self

    to = cpu = cuda = xpu = half = float = double = bfloat16 = type = train = eval = requires_grad_ = to_empty = _same
    share_memory = compile = _apply = zero_grad = _same

    def reset_parameters(self):
        pass

    @property
    def device(self):
        return CPU

    def extra_repr(self):
        return ""

    def _get_name(self):
        return type(self).__name__

    def __repr__(self):
        return type(self).__name__ + "()"


class RemovableHandle:
    _next = 0

    def __init__(self, hooks):
        self.hooks = hooks
        RemovableHandle._next += 1
        self.id = RemovableHandle._next

    def remove(self):
        self.hooks.pop(self.id, None)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.remove()


# ---- modules that hold others --------------------------------------------------------------------------------------
class ModuleList(Module):
    def __init__(self, modules=None):
        super().__init__()
        self.extend(modules or ())

    def append(self, module):
        self._modules[str(len(self._modules))] = module
        return self

    def extend(self, modules):
        for m in modules:
            self.append(m)
        return self

    def insert(self, index, module):
        held = list(self._modules.values())
        held.insert(index, module)
        self._modules.clear()
        self.extend(held)

    def pop(self, index=-1):
        held = list(self._modules.values())
        m = held.pop(index)
        self._modules.clear()
        self.extend(held)
        return m

    def __len__(self):
        return len(self._modules)

    def __iter__(self):
        return iter(list(self._modules.values()))

    def __contains__(self, module):
        return module in self._modules.values()

    def __getitem__(self, index):
        if isinstance(index, str):
            return self._modules[index]
        held = list(self._modules.values())
        if isinstance(index, slice):
            part = type(self)(held[index]) if type(self) is ModuleList else Sequential(*held[index])
            return part
        return held[index]

    def __setitem__(self, index, module):
        self._modules[str(index if index >= 0 else len(self._modules) + index)] = module

    def __delitem__(self, index):
        held = list(self._modules.values())
        del held[index]
        self._modules.clear()
        self.extend(held)

    def __add__(self, other):
        return ModuleList(list(self) + list(other))


class Sequential(ModuleList):
    def __init__(self, *modules):
        Module.__init__(self)
        if len(modules) == 1 and isinstance(modules[0], dict):
            for name, m in modules[0].items():
                self.add_module(name, m)
        else:
            self.extend(modules)

    def forward(self, input):
        for m in self._modules.values():
            input = m(input)
        return input


class ModuleDict(Module):
    def __init__(self, modules=None):
        super().__init__()
        if modules:
            self.update(modules)

    def update(self, modules):
        for name, m in modules.items() if hasattr(modules, "items") else modules:
            self._modules[name] = m

    def __getitem__(self, key):
        return self._modules[key]

    def __setitem__(self, key, module):
        self.add_module(key, module)

    def __delitem__(self, key):
        del self._modules[key]

    def __contains__(self, key):
        return key in self._modules

    def __iter__(self):
        return iter(self._modules)

    def __len__(self):
        return len(self._modules)

    def keys(self):
        return self._modules.keys()

    def items(self):
        return self._modules.items()

    def values(self):
        return self._modules.values()

    def pop(self, key):
        return self._modules.pop(key)

    def get(self, key, default=None):
        return self._modules.get(key, default)


class ParameterList(Module):
    def __init__(self, values=None):
        super().__init__()
        self.extend(values or ())

    def append(self, p):
        name = str(len(self))
        if isinstance(p, Tensor) and not isinstance(p, Parameter):
            p = Parameter(p)
        setattr(self, name, p)
        return self

    def extend(self, values):
        for p in values:
            self.append(p)
        return self

    def __len__(self):
        return len(self._parameters)

    def __iter__(self):
        return iter(list(self._parameters.values()))

    def __getitem__(self, index):
        return list(self._parameters.values())[index]


class ParameterDict(Module):
    def __init__(self, parameters=None):
        super().__init__()
        for name, p in (parameters or {}).items():
            self[name] = p

    def __setitem__(self, key, p):
        self._parameters[key] = p if isinstance(p, Parameter) else Parameter(p)

    def __getitem__(self, key):
        return self._parameters[key]

    def __contains__(self, key):
        return key in self._parameters

    def __iter__(self):
        return iter(self._parameters)

    def __len__(self):
        return len(self._parameters)

    def keys(self):
        return self._parameters.keys()

    def items(self):
        return self._parameters.items()

    def values(self):
        return self._parameters.values()
