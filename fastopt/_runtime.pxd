"""The thread pool, for the other compiled modules: there is one in a process, and it lives here."""

ctypedef void (*Task)(void* context, int part, int parts) noexcept nogil

cdef int threads() noexcept nogil
cdef void run(Task task, void* context, int parts, long long nanoseconds) noexcept nogil
