"""Images and texts on disk, and the cached outputs of the frozen vision side."""
