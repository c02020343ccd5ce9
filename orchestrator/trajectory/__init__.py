"""The record of a run, and how people read it."""
