"""Process settings, compiler options, memory, caches, progress and files."""
