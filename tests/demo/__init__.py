"""``python -m tests.demo``: questions over a real text of more than 10 MB, each answer compared with a plain count."""
