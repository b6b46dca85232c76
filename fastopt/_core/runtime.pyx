"""What the machine offers: the instruction set, threads, and addresses."""
from cpython.buffer cimport (
    Py_buffer, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)

cdef extern from "fo_cpu.h" nogil:
    int fo_cpu_level()

cdef extern from "fo_pool.h" nogil:
    int fo_pool_threads()
    void fo_pool_set_threads(int threads)
    void fo_pool_run(Task task, void* context, int parts, long long nanoseconds)
    void fo_pool_stop()
    int fo_pool_workers()
    long long fo_pool_set_waking(long long nanoseconds)


cdef int n_threads() noexcept nogil:
    return fo_pool_threads()


cdef void run_parts(Task task, void* context, int parts, long long nanoseconds) noexcept nogil:
    fo_pool_run(task, context, parts, nanoseconds)


def cpu_level():
    """Highest x86-64 level that processor and operating system support: 4, 3, or 0 for the base build."""
    return fo_cpu_level()


def get_threads():
    """Threads that a step may use, the calling one included."""
    return fo_pool_threads()


def set_threads(int n):
    """Let a step use `n` threads, the calling one included; surplus workers end."""
    with nogil:
        fo_pool_set_threads(n)


def live_workers():
    """Worker threads that exist at this moment."""
    return fo_pool_workers()


def set_wake_threshold(long long nanoseconds):
    """For which length of a job sleeping workers are woken, 0 for any; returns what it was before."""
    return fo_pool_set_waking(nanoseconds)


def address(object array not None, bint written=True):
    """Where an array's first element stands; BufferError if it is to be written and must not be."""
    return <Py_ssize_t> data_ptr(array, written)


cdef char* data_ptr(object array, bint written) except? NULL:
    cdef Py_buffer view
    cdef char* first
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES | (PyBUF_WRITABLE if written else 0))
    first = <char*> view.buf
    PyBuffer_Release(&view)
    return first


def stop_workers():
    """End every worker; the next large step starts them anew."""
    with nogil:
        fo_pool_stop()
