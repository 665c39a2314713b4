"""What surrounds the computation: process settings, compiler options, memory, caches, files."""
