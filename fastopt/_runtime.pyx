"""What the machine offers: the instruction set, and threads."""

cdef extern from "fo_cpu.h" nogil:
    int fo_cpu_level()

cdef extern from "fo_pool.h" nogil:
    int fo_pool_threads()
    void fo_pool_set_threads(int threads)
    void fo_pool_run(Task task, void* context, int parts, long long nanoseconds)
    void fo_pool_stop()
    int fo_pool_workers()


cdef int threads() noexcept nogil:
    return fo_pool_threads()


cdef void run(Task task, void* context, int parts, long long nanoseconds) noexcept nogil:
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


def stop():
    """End every worker; the next large step starts them anew."""
    with nogil:
        fo_pool_stop()
