"""Image files to arrays: one module for each format, and the EXIF orientation."""
