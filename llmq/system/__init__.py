"""The operating system behind small doors: files, locks and memory figures, each with a portable fallback."""
