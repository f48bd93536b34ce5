"""The few calls of the CUDA driver that a TensorRT engine needs, by ctypes: no other package brings them.

CUDA Driver API, sections Device, Primary Context, Memory and Stream Management. Host memory is pageable: a copy to the
device has read it when the call returns, and a copy from the device has written it when the stream was waited for.
"""

import ctypes

LIBRARY = "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class Refused(ValueError):
    """The driver is not there, or did not do what it was asked; the text is a sentence's end."""


def open_driver():
    """The driver's library, started. Raises Refused."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise Refused("there is no NVIDIA driver") from None
    if library.cuInit(0) != 0:
        raise Refused("the NVIDIA driver finds no GPU that works")
    return library


def describe(gpu):
    """{"name", "compute_capability"} of a GPU by its number. Raises Refused."""
    library = open_driver()
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGet", ctypes.byref(device), gpu)
    _call(library, "cuDeviceGetName", name, len(name), device)
    _call(library, "cuDeviceGetAttribute", ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    _call(library, "cuDeviceGetAttribute", ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": f"{major.value}.{minor.value}",
    }


class Device:
    """A GPU's primary context (TensorRT's own) with one stream, and a buffer for each name, which grows as needed."""

    def __init__(self, gpu):
        self._library = open_driver()
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        _call(self._library, "cuDeviceGet", ctypes.byref(device), gpu)
        _call(self._library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        self.use()
        _call(self._library, "cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = stream.value
        self._buffers = {}

    def use(self):
        """Make this GPU the calling thread's."""
        _call(self._library, "cuCtxSetCurrent", self._context)

    def room(self, name, size):
        """The address of a buffer of at least `size` bytes."""
        address, held = self._buffers.get(name, (None, 0))
        if held < size:
            if address is not None:
                _call(self._library, "cuMemFree_v2", ctypes.c_uint64(self._buffers.pop(name)[0]))
            pointer = ctypes.c_uint64()
            _call(self._library, "cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
            address = pointer.value
            self._buffers[name] = (address, size)
        return address

    def put(self, name, array):
        """Copy a contiguous array to its buffer, in the stream; the address of the buffer."""
        address = self.room(name, array.nbytes)
        self._copy("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data), array.nbytes)
        return address

    def get(self, name, array):
        """Copy a buffer to a contiguous array, in the stream: it is there after `wait`."""
        address = ctypes.c_uint64(self._buffers[name][0])
        self._copy("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(array.ctypes.data), address, array.nbytes)

    def _copy(self, call, to, source, size):
        _call(self._library, call, to, source, ctypes.c_size_t(size), ctypes.c_void_p(self.stream))

    def wait(self):
        """Until everything in the stream is done."""
        _call(self._library, "cuStreamSynchronize", ctypes.c_void_p(self.stream))


def _call(library, name, *arguments):
    status = getattr(library, name)(*arguments)
    if status != 0:
        raise Refused(f"the NVIDIA driver refuses {name} (error {status})")
