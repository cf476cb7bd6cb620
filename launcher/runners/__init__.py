"""Where the job's processes run, and how they are kept."""
