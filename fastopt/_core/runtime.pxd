"""The thread pool of the process and the addresses of arrays, for the other compiled modules."""

ctypedef void (*Task)(void* context, int part, int parts) noexcept nogil

ctypedef void (*TeamMember)(void* argument) noexcept nogil
ctypedef void (*TeamRun)(TeamMember function, void* argument, unsigned int n, unsigned int flags) noexcept nogil
ctypedef int (*TeamNumber)() noexcept nogil

cdef extern from "fo_pool.h" nogil:
    ctypedef struct Team "struct fo_team":
        TeamRun run
        TeamNumber max_threads, thread_index

cdef int n_threads() noexcept nogil
# Run every part of a task once and return when all have finished. `nanoseconds`: estimate for one thread.
cdef void run_parts(Task task, void* context, int parts, long long nanoseconds) noexcept nogil
# The same on the threads of a team, see `fo_pool.h`, if it is not NULL.
cdef void run_in_team(const Team* team, Task task, void* context, int parts, long long nanoseconds) noexcept nogil
# Lowest address of the elements. BufferError if the array is read-only and `written` is true.
cdef char* data_ptr(object array, bint written) except? NULL
# 1, and one more in each forked child: a flag of this value was not set by a thread of another process.
cdef int process_number() noexcept nogil
