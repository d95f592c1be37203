"""Files as torch.save writes them, made without torch, sound or not; PyTorch's own are read where there is PyTorch."""

import collections
import io
import pickle
import struct
import types
import zipfile

import numpy as np


class Storage:
    """What a pickle of torch refers to: `data` is in the file under its key."""

    def __init__(self, key, data, kind=None, size=None):
        kind = kind or {"float32": "FloatStorage", "int64": "LongStorage"}[data.dtype.name]
        self.key, self.data = key, data.tobytes("A")
        self.size = data.size if size is None else size
        self.kind = of_torch("torch", kind)


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def of_torch(module, name):
    """Pickled by this name; such modules need not exist."""
    return type(name, (), {"__module__": module, "__qualname__": name})


def tensor(storage, offset, shape, strides):
    """As torch pickles it."""
    rebuild = of_torch("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, strides, False, collections.OrderedDict())


def dumped(value, storages, legacy):
    """A pickle; the arrays that it refers to are added to `storages`, by key."""

    class Pickler(pickle._Pickler):  # the one in Python, which lets itself be told to take names as they are
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
    """A file of torch.save, of arrays or of what is pickled as it is."""
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
