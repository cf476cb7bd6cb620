"""Where checkpoints live: layout, commit protocol, names and versions. docs/store.md argues the order of every write."""
