"""Make files like those of torch.save, valid or damaged, without torch."""

import collections
import io
import pickle
import struct
import types
import zipfile

import numpy as np

KINDS = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


class Storage:
    """An array that a pickle of torch refers to by its key."""

    def __init__(self, key, data, kind=None, size=None):
        kind = kind or KINDS[data.dtype.name]
        self.key, self.data = key, data.tobytes("A")
        self.size = data.size if size is None else size
        self.kind = of_torch("torch", kind)


class Call:
    """An object that is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def of_torch(module, name):
    """An object that is pickled by this name. The module need not exist."""
    return type(name, (), {"__module__": module, "__qualname__": name})


def tensor(storage, offset, shape, strides):
    """A tensor, as torch pickles it."""
    rebuild = of_torch("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, strides, False, collections.OrderedDict())


def dumped(value, storages, legacy):
    """Pickle a value, and add the arrays that it refers to to `storages` by key."""

    class Pickler(pickle._Pickler):  # the one in Python, in which names need not exist
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            storages.setdefault(obj.key, obj)
            return ("storage", obj.kind, obj.key, "cpu", obj.size, *((None,) if legacy else ()))

        def save_global(self, obj, name=None):
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode())

        dispatch = pickle._Pickler.dispatch | {type: save_global, types.FunctionType: save_global}

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def saved_by_torch(weights, legacy=False, **more):
    """The content of a file with arrays or other values, in the present or in the legacy format."""
    state = collections.OrderedDict()
    for key, (name, value) in enumerate({**weights, **more}.items()):
        if isinstance(value, np.ndarray):
            strides = tuple(stride // value.itemsize for stride in value.strides)
            value = tensor(Storage(str(key), value), 0, value.shape, strides)
        state[name] = value
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    storages = {}
    pickled, file = dumped(state, storages, legacy), io.BytesIO()
    if legacy:
        about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        for part in (0x1950A86A20F9469CFC6C, 1001, about):
            file.write(pickle.dumps(part, protocol=2))
        file.write(pickled + pickle.dumps(list(storages), protocol=2))
        for storage in storages.values():
            file.write(struct.pack("<q", storage.size) + storage.data)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/byteorder", "little")
            for storage in storages.values():
                archive.writestr(f"archive/data/{storage.key}", storage.data)
    return file.getvalue()
