"""The device mesh, where arrays live on it, and the processes and hardware behind it."""
