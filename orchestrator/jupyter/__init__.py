"""A Jupyter kernel whose cells run in a box: for notebooks and consoles. It needs the extra ``jupyter`` (ipykernel)."""
