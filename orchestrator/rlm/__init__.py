"""The method: a root model that works on a context through a REPL until it has the answer."""
