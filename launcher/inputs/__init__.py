"""Before the job: the node cache, the read-only mount, the source code."""
