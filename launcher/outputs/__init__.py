"""During and after the job: seeing checkpoints, taking them out of the writer's reach, storing them."""
