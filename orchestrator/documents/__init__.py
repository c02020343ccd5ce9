"""Contexts as people have them: files, folders, patterns, archives, PDF."""
