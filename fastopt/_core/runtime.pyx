"""Access to the processor level, the thread pool and the addresses of arrays."""
import os

from cpython.buffer cimport (
    Py_buffer, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)

cdef extern from "fo_cpu.h" nogil:
    int fo_cpu_is_amd()
    int fo_cpu_level()

cdef extern from "fo_pool.h" nogil:
    int fo_pool_threads()
    void fo_pool_set_threads(int threads)
    void fo_pool_run(Task task, void* context, int parts, long long nanoseconds, const Team* team)
    void fo_pool_stop()
    int fo_pool_workers()
    long long fo_pool_set_wake_threshold(long long nanoseconds)


cdef int process = 1


cdef int process_number() noexcept nogil:
    return process


def count_fork():
    """Count a fork, in the child."""
    global process
    process += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=count_fork)


cdef int n_threads() noexcept nogil:
    return fo_pool_threads()


cdef void run_parts(Task task, void* context, int parts, long long nanoseconds) noexcept nogil:
    fo_pool_run(task, context, parts, nanoseconds, NULL)


cdef void run_in_team(const Team* team, Task task, void* context, int parts, long long nanoseconds) noexcept nogil:
    fo_pool_run(task, context, parts, nanoseconds, team)


cdef char* data_ptr(object array, bint written) except? NULL:
    cdef Py_buffer view
    cdef char* lowest
    cdef int i
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES | (PyBUF_WRITABLE if written else 0))
    lowest = <char*> view.buf
    for i in range(view.ndim if view.len else 0):
        if view.strides[i] < 0:
            lowest += (view.shape[i] - 1) * view.strides[i]
    PyBuffer_Release(&view)
    return lowest


def address(object array not None, bint written=True):
    """Return the lowest address of an array's elements.

    Raises BufferError if the array is read-only and `written` is true.
    """
    return <Py_ssize_t> data_ptr(array, written)


def cpu_level():
    """Return the highest x86-64 level that the machine supports: 4, 3, or 0 for the base build."""
    return fo_cpu_level()


def cpu_is_amd():
    """Return whether the processor is made by AMD, or by Hygon under its license."""
    return fo_cpu_is_amd() != 0


def get_threads():
    """Return the number of threads that a step may use, including the calling thread."""
    return fo_pool_threads()


def set_threads(int n):
    """Set the number of threads that a step may use. The next parallel step joins surplus workers."""
    with nogil:
        fo_pool_set_threads(n)


def live_workers():
    """Return the number of live worker threads."""
    return fo_pool_workers()


def stop_workers():
    """Join every worker. The next parallel step starts new workers."""
    with nogil:
        fo_pool_stop()


def set_wake_threshold(long long nanoseconds):
    """Set the duration from which a job wakes sleeping workers. Returns the previous value."""
    return fo_pool_set_wake_threshold(nanoseconds)
