"""A run on disk, shared by controller and worker: paths, ownership, frozen code, spec, protocol."""
