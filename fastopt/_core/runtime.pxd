"""For the other compiled modules: the thread pool, of which a process has one, and addresses."""

ctypedef void (*Task)(void* context, int part, int parts) noexcept nogil

cdef int n_threads() noexcept nogil
cdef char* data_ptr(object array, bint written) except? NULL
cdef void run_parts(Task task, void* context, int parts, long long nanoseconds) noexcept nogil
