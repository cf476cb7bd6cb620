"""A job: what to run, its attempts, and all that happened. No I/O but its own folder."""
